// What the environment asks for, read when a context is made: for tests and for comparisons.
#pragma once

// Which way attention is computed; ALORA_CPU_ATTENTION: "stock", "ours", else "auto".
enum class alora_attention_path {
    choose,  // for adapted tokens, whichever is faster
    stock,   // upstream's node
    ours,    // ours wherever it can, in graphs of the base too
};

alora_attention_path alora_attention_path_wanted();

// False if ALORA_CPU_PATH=standard keeps to ggml's own products.
bool alora_fusing_wanted();
