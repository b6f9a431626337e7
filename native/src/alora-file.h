// An adapter's GGUF file, parsed from memory and checked in everything that needs no base model.
#pragma once

#include "ggml-cpp.h"
#include "gguf.h"
#include "llama.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

// The A and B of one target as the file has them; `data` points into the caller's bytes.
struct alora_pair {
    struct matrix {
        const ggml_tensor * info = nullptr;  // type and ne; no data of its own
        const void *        data = nullptr;
    };
    matrix a;
    matrix b;
};

struct alora_file {
    std::string              architecture;
    float                    alpha = 0.0f;    // 0: the key is missing, alpha/rank counts as 1
    std::vector<llama_token> invocation;      // empty for a plain LoRA
    std::map<std::string, alora_pair> pairs;  // by the name of the target

    // Throws alora_error with ALORA_ERR_FORMAT. `data` must outlive the object.
    alora_file(const void * data, size_t size);

  private:
    gguf_context_ptr gguf;
    ggml_context_ptr infos;
};
