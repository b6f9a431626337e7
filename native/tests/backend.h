// The CPU's backend as upstream's public functions give it.
#pragma once

#include "check.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "llama.h"

inline ggml_backend_dev_t cpu_device() {
    llama_backend_init();  // which loads it where it is a library of its own
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

class cpu_backend {
  public:
    explicit cpu_backend(int n_threads) :
        device(cpu_device()), backend(ggml_backend_dev_init(device, nullptr)) {
        auto set = (ggml_backend_set_n_threads_t) function("ggml_backend_set_n_threads");
        CHECK(set);
        set(backend.get(), n_threads);
    }

    void * function(const char * name) const {
        return ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), name);
    }

    // Computes what `results` need.
    template <typename... T> ggml_status compute(ggml_context * ctx, T *... results) {
        ggml_cgraph * graph = ggml_new_graph(ctx);
        (ggml_build_forward_expand(graph, results), ...);
        return ggml_backend_graph_compute(backend.get(), graph);
    }

    ggml_backend_dev_t device;
    ggml_backend_ptr   backend;
};

// Tensors with memory of their own.
inline ggml_context_ptr new_context(size_t size = 16 << 20) {
    return ggml_context_ptr(ggml_init({ size, nullptr, /*.no_alloc =*/false }));
}
