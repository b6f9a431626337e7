#include "alora-host.h"

#include "llama-graph.h"

alora_host::alora_host(const llm_graph_context & graph) :
    ctx(graph.ctx0), sched(graph.sched), cpu(graph.backend_cpu) {}

void alora_host::take(ggml_tensor * node) const {
    if (sched) {
        ggml_backend_sched_set_tensor_backend(sched, node, cpu);
    }
}

ggml_tensor * alora_host::node(
        const function & what, ggml_type type, const std::array<int64_t, 4> & ne,
        std::vector<ggml_tensor *> sources) const {
    ggml_tensor * made = ggml_custom_4d(
            ctx, type, ne[0], ne[1], ne[2], ne[3], sources.data(), (int) sources.size(), what.call,
            what.n_tasks, what.node);
    ggml_set_name(made, what.name);
    take(made);
    return made;
}

ggml_tensor * alora_host::in_place(
        const function & what, ggml_tensor * res, std::vector<ggml_tensor *> others) const {
    ggml_tensor * made = ggml_custom_inplace(
            ctx, res, others.data(), (int) others.size(), what.call, what.n_tasks, what.node);
    ggml_set_name(made, what.name);
    take(made);
    return made;
}

bool alora_host::is_host(ggml_backend_t backend) const {
    return ggml_backend_buft_is_host(ggml_backend_sched_get_buffer_type(sched, backend));
}

bool alora_host::alone() const {
    const int n = sched ? ggml_backend_sched_get_n_backends(sched) : 0;
    for (int i = 0; i < n; ++i) {
        if (!is_host(ggml_backend_sched_get_backend(sched, i))) {
            return false;
        }
    }
    return true;
}

// The scheduler gives a product with a host's weight to the CPU or to a backend like BLAS, which
// both write to the host's memory, or, if it has many rows, to a device that copies the weight first.
// Other kinds of nodes go wherever their neighbours do.
bool alora_host::may_write(ggml_tensor * res) const {
    if (alone()) {
        return true;
    }
    ggml_tensor * product = res->view_src ? res->view_src : res;
    if (product->op != GGML_OP_MUL_MAT && product->op != GGML_OP_MUL_MAT_ID) {
        return false;
    }
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); ++i) {
        const ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
        const bool           wanted  = is_host(backend) ? ggml_backend_supports_op(backend, product)
                                                        : ggml_backend_offload_op(backend, product);
        if (backend != cpu && wanted) {
            return false;
        }
    }
    take(product);
    return true;
}
