// The bank: all adapters of one context, stacked per target. It owns their memory and knows which
// slot changes which target; the graph (alora-graph.cpp) reads it, the C API (alora.cpp) changes it.
#pragma once

#include "alora-file.h"
#include "alora-pack.h"
#include "alora-slots.h"
#include "ggml-cpp.h"

#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

struct llama_model;

// How an architecture's graph consumes a weight.
enum class alora_op {
    mm,     // ggml_mul_mat:    A [n_in, rank, n_slots],          B [width, n_out, n_slots]
    mm_id,  // ggml_mul_mat_id: A [n_in, rank, n_expert*n_slots], B [width, n_out, n_expert*n_slots]
    embd,   // ggml_get_rows:   A [rank, n_vocab*n_slots],        B [width, n_embd, n_slots]
};

// One base weight that at least one adapter changes. Matrices of one slot lie together, so a slot
// is a view and (slot, expert) is the index slot*n_expert + expert.
struct alora_target {
    alora_op            op;
    const ggml_tensor * weight;
    int64_t             rank   = 0;  // room; shorter adapters are padded with zeros
    ggml_type           type_a = GGML_TYPE_COUNT;
    ggml_type           type_b = GGML_TYPE_COUNT;
    ggml_tensor *       a      = nullptr;
    ggml_tensor *       b      = nullptr;

    std::vector<int64_t> slot_rank;  // [n_slots]; 0: the slot leaves this target as it is

    int64_t n_expert() const { return op == alora_op::mm_id ? weight->ne[2] : 1; }

    // shape of one matrix of A and of B, in rows and columns of its rank-padded form
    int64_t rows_a() const { return op == alora_op::embd ? weight->ne[1] : rank; }
    int64_t cols_a() const { return op == alora_op::embd ? rank : weight->ne[0]; }
    int64_t rows_b() const { return op == alora_op::embd ? weight->ne[0] : weight->ne[1]; }
    int64_t cols_b() const { return width(rank); }

    // Values in a row of B for rank r: as many as the kernel of its products takes at a time. The
    // rows are stored for the dot product of single tokens; `mul_mat` of a batch needs less.
    int64_t width(int64_t r, bool batch = false) const;

    bool on_host() const;
};

// What reserving a worst-case graph found out about a weight.
struct alora_use {
    int64_t graph        = 0;     // the reserved graph that last counted it
    int32_t n_in_graph   = 0;     // times that graph consumes it
    int32_t n_max        = 0;     // most times any graph does
    bool    row_is_token = true;  // every row it multiplies belongs to one token of the batch
};

class alora_bank {
  public:
    using key = std::pair<alora_op, std::string>;  // how, and the weight's name

    explicit alora_bank(const llama_model & model) : model(model) {}

    // --- for the graph

    const alora_target * find(alora_op op, const char * weight) const;
    void                 note_reserve() { n_reserves++; }
    void                 note_use(alora_op op, const char * weight, bool row_is_token);

    // Nodes that a mixed graph adds at most.
    uint32_t n_nodes() const;

    // --- for the C API; all may throw alora_error and then leave the bank as it was

    struct change {
        int32_t slot = 0;
        bool    grew = false;  // the graphs' worst case changed: reserve again
    };

    change add(const alora_file & file);
    void   remove(int32_t slot);
    bool   make_room(int32_t n_adapters, int64_t rank);  // true if the bank grew

    bool    in_use(int32_t slot) const { return slot > 0 && slot < n_slots && used[slot]; }
    int32_t slots() const { return n_slots; }
    int32_t adapters() const;
    int32_t targets() const { return (int32_t) by_key.size(); }
    int64_t largest_rank() const;
    size_t  n_bytes() const;

    alora_activations activations;

    std::atomic<bool> interrupted{ false };   // read by the abort callback, amid a computation
    bool              interruptible = false;  // whether that callback is installed

    uint64_t generation = 0;  // changes whenever a graph built before would read the wrong thing
    int64_t  n_reserves = 0;
    int64_t  n_graphs   = 0;

  private:
    struct storage {
        std::vector<ggml_context_ptr>        ctxs;
        std::vector<ggml_backend_buffer_ptr> bufs;
    };
    using target_map = std::map<key, alora_target>;

    alora_target match(const std::string & name, const alora_pair & pair) const;
    void         check_shapes(
            const std::string & name, const alora_target & target, const alora_pair & pair) const;

    // The targets with the types, ranks and slots that hold what is there and `wanted` too.
    target_map merged(const target_map & wanted, int32_t n_slots_new) const;
    void       allocate(target_map & targets, int32_t n_slots_new, storage & memory) const;
    void       copy_slots(target_map & targets) const;
    void       adopt(target_map && targets, int32_t n_slots_new, storage && memory);

    const llama_model &      model;
    std::map<key, alora_use> uses;

    target_map        by_key;
    storage           memory;
    int32_t           n_slots  = 1;
    int64_t           min_rank = 0;
    std::vector<bool> used     = { true };  // [n_slots]
};
