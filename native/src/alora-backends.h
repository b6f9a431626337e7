// Where ggml's backends are found when each is a library of its own (GGML_BACKEND_DL).
#pragma once

#include <string>

// The folder of this library in UTF-8, "." if the system does not tell.
std::string alora_own_folder();

// Loads the backends beside this library, of the CPU's the one that suits the processor best. Upstream
// would look beside the program, which is Python, and in whatever folder it runs in.
void alora_load_backends();
