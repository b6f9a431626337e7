// The bank: all adapters of one context. It owns their memory and knows which slot changes which
// target; the graph (alora-graph.cpp) reads it, the C API (alora.cpp) changes it.
#pragma once

#include "alora-file.h"
#include "alora-slots.h"
#include "alora-target.h"
#include "alora-vectors.h"
#include "alora-workspace.h"
#include "alora.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

struct llama_model;

// What reserving a worst-case graph found out about a weight.
struct alora_use {
    int64_t graph        = 0;     // the reserved graph that last counted it
    int32_t n_in_graph   = 0;     // times that graph consumes it
    int32_t n_max        = 0;     // most times any graph does
    bool    row_is_token = true;  // every row it multiplies belongs to one token of the batch
    int32_t input        = -1;    // weights with the same number multiply the same input

    alora_precision precision;  // that the base's own graph asks for
};

class alora_bank {
  public:
    using key = std::pair<alora_op, std::string>;  // how, and the weight's name

    explicit alora_bank(const llama_model & model);

    // --- for the graph

    const alora_target * find(alora_op op, const char * weight) const;
    void                 note_reserve();
    // `product`: the base's, as the graph goes on with it; null where an adapter adds to it.
    void note_use(
            alora_op op, const char * weight, const ggml_tensor * x, bool row_is_token,
            const ggml_tensor * product);

    // The targets that were multiplied with the same input as `target` when a graph was reserved.
    std::vector<const alora_target *> sharing_input(const alora_target & target) const;

    // Whether all products are fused and, unless it is 0, `slot` changes every target.
    bool fused_throughout(int32_t slot = 0) const;

    // Whether alpha/rank of `slot`, or if it is 0 of any, multiplies a product that is not fused.
    bool scaled(int32_t slot = 0) const;

    // Whether ggml's repacked kernels multiply with this weight (never if fusing is switched off).
    bool repacked(const ggml_tensor & weight) const;

    // Whether the architecture's graph reads a cache, which upstream's encode has none of.
    bool needs_cache() const;

    // Nodes that a mixed graph adds at most.
    uint32_t n_nodes() const;

    // --- for the C API; what throws leaves the bank as it was

    struct change {
        int32_t slot = 0;
        bool    grew = false;  // the graphs' worst case changed: reserve, then keep() or undo()
    };

    change add(const alora_file & file);
    void   remove(int32_t slot);
    bool   make_room(int32_t n_adapters, int64_t rank);  // true if the bank grew

    // What was there before the bank grew stays until the graphs' buffers are there too.
    void keep();
    void undo();

    bool    in_use(int32_t slot) const { return slot > 0 && slot < n_slots && used[slot]; }
    int32_t slots() const { return n_slots; }
    int32_t adapters() const;
    int32_t targets() const { return (int32_t) by_key.size(); }
    int64_t largest_rank() const;
    size_t  n_bytes() const;

    alora_activations activations;
    alora_vectors     vectors;

    alora_attention_mode attention = ALORA_ATTENTION_UPSTREAM;
    alora_workspace      workspace;  // of attention, for whichever graph is computed

    int n_threads = 1;  // most that any graph was built for: they may come again

    std::atomic<bool> interrupted{ false };    // read by the abort callback, amid a computation
    std::atomic<bool> interruptible{ false };  // whether that callback is installed

    ggml_abort_callback callers_abort      = nullptr;  // one the caller had set, asked as well
    void *              callers_abort_data = nullptr;

    // Sequences of the batch that is decoded and their last positions before it.
    std::vector<std::pair<llama_seq_id, llama_pos>> before_batch;

    int32_t shown = -1;  // the hook that alora_show() named

    uint64_t generation = 0;  // changes whenever a graph built before would read the wrong thing
    int64_t  n_reserves = 0;
    int64_t  n_graphs   = 0;
    int32_t  n_skipped  = 0;

  private:
    struct storage {
        std::vector<std::unique_ptr<char[]>> headers;  // the contexts' memory
        std::vector<ggml_context_ptr>        ctxs;
        std::vector<ggml_backend_buffer_ptr> bufs;
    };
    using target_map = std::map<key, alora_target>;

    alora_target match(const std::string & name, const alora_pair & pair) const;
    int32_t      most_slots(const target_map & more) const;
    void         check_shapes(
            const std::string & name, const alora_target & target, const alora_pair & pair) const;

    // An adapter's matrices of fused targets: where each target's begin.
    struct own_memory {
        std::vector<ggml_backend_buffer_ptr> bufs;
        std::map<key, char *>                at;
    };
    own_memory allocate_own(const target_map & wanted, const alora_file & file) const;
    bool       has_stacks() const;  // whether some target is not fused

    // The targets with the types, ranks and slots that hold what is there and `wanted` too.
    target_map merged(const target_map & wanted, int32_t n_slots_new) const;
    void       allocate(target_map & targets, int32_t n_slots_new, storage & memory) const;
    void       copy_slots(target_map & targets) const;
    void adopt(target_map && targets, int32_t n_slots_new, storage && memory, int64_t old_min_rank);

    const llama_model &      model;
    const bool               may_fuse;
    std::map<key, alora_use> uses;
    int32_t                  n_inputs = 0;

    std::map<const ggml_tensor *, int32_t> inputs;  // of the graph that is being reserved

    const ggml_tensor * last_product = nullptr;  // of that graph, and its use
    alora_use *         last_use     = nullptr;

    target_map        by_key;
    storage           memory;  // of stacks
    int32_t           n_slots  = 1;
    int64_t           min_rank = 0;
    std::vector<bool> used     = { true };  // [n_slots]

    std::vector<std::vector<ggml_backend_buffer_ptr>> own;  // [n_slots], of fused targets' matrices

    struct state {
        target_map        by_key;
        storage           memory;
        int32_t           n_slots  = 1;
        int64_t           min_rank = 0;
        std::vector<bool> used;
    };
    state before;  // it grew
};
