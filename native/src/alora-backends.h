// Where ggml's backends are found when each is a library of its own (GGML_BACKEND_DL).
#pragma once

// Loads the backends beside this library, of the CPU's the one that suits the processor best. Upstream
// would look beside the program, which is Python, and in whatever folder it runs in.
void alora_load_backends();
