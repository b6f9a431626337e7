// The directions of all vectors that act at a point, stacked in the memory of a device that computes the
// layer, for products of its own. Layers of the CPU need none.
#pragma once

#include "alora-vector.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <functional>
#include <map>
#include <memory>
#include <vector>

class alora_directions {
  public:
    // A direction of an edit; null where a vector was removed.
    struct column {
        const alora_vector *  vector;
        const alora_edit_at * edit;
        const float *         values;
    };

    using columns = std::vector<column>;

    struct stack {
        ggml_tensor * rows   = nullptr;  // F32 [n_embd, capacity]
        ggml_tensor * turned = nullptr;  // F32 [capacity, n_embd]
        columns       of;
    };

    // The memory of a layer's device; null for the CPU's.
    using memory_of = std::function<ggml_backend_buffer_type_t(int32_t layer)>;

    explicit alora_directions(memory_of memory) : memory(std::move(memory)) {}

    bool on_device(const alora_point & point) const { return memory && memory(point.layer); }

    // That of a point on a device; null elsewhere.
    const stack * find(const alora_point & point) const;

    // Makes the stacks hold `wanted`, all of it. Returns whether they grew: what was there before
    // stays until keep(), for undo().
    bool place(std::map<alora_point, columns> wanted, int64_t n_embd);
    void keep();
    void undo();

    void forget(const alora_vector * vector);  // never throws

    size_t n_bytes() const;

  private:
    struct placed {
        std::map<alora_point, stack>         stacks;
        std::vector<std::unique_ptr<char[]>> headers;  // the contexts' memory
        std::vector<ggml_context_ptr>        ctxs;
        std::vector<ggml_backend_buffer_ptr> bufs;
    };

    placed allocate(const std::map<alora_point, columns> & wanted, int64_t n_embd) const;

    const memory_of memory;
    placed          now;
    placed          before;
    bool            grown = false;  // since, so that there is something to undo
};
