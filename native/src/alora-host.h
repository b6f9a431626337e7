// What the CPU computes: which memory is its own, and our nodes, which no other backend can.
#pragma once

#include "ggml-backend.h"
#include "ggml.h"

#include <array>
#include <vector>

struct llm_graph_context;

// Whether it is the CPU's, or a device's that lies on the host: other memory of a device may be
// readable too, but then the device computes with it.
inline bool alora_on_cpu(ggml_backend_buffer_type_t buft) {
    const ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
    return ggml_backend_buft_is_host(buft) &&
           (!dev || ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU ||
                   buft == ggml_backend_dev_host_buffer_type(dev));
}

// Makes the nodes of ours in one graph. Each is given to the CPU: what other backends say that they
// can compute is not asked (RPC says everything, and would call our functions in another process).
class alora_host {
  public:
    explicit alora_host(const llm_graph_context & graph);

    alora_host(ggml_context * ctx) : ctx(ctx) {}  // without a scheduler, which tests do not need

    ggml_context * const ctx;

    struct function {
        ggml_custom_op_t call;
        void *           node;  // what it is called with
        const char *     name;
        int              n_tasks = GGML_N_TASKS_MAX;
    };

    ggml_tensor * node(
            const function & what, ggml_type type, const std::array<int64_t, 4> & ne,
            std::vector<ggml_tensor *> sources) const;

    // A node that writes into its first source, `res`, which is not another backend's: see may_write().
    ggml_tensor * in_place(
            const function & what, ggml_tensor * res, std::vector<ggml_tensor *> others) const;

    // Whether a node of ours may write into `res`, a product with a weight of the host's that nothing
    // else reads. Beside a device the product is given to the CPU first, unless some backend
    // would rather have it.
    bool may_write(ggml_tensor * res) const;

    // Whether all memory that this graph is computed in is the host's.
    bool alone() const;

    // Gives a node to the CPU, upstream's too.
    void take(ggml_tensor * node) const;

  private:
    bool is_host(ggml_backend_t backend) const;

    ggml_backend_sched_t sched = nullptr;
    ggml_backend_t       cpu   = nullptr;
};
