// Attention of few tokens to many cached ones on the CPU, as one node in place of upstream's: what
// is read of the cache serves every query that sees it, all heads of a group, all tokens and all
// forks. Long caches are split into runs that threads share; who computes a run makes no difference.
// Beside tokens of the base it writes the adapted ones' rows of upstream's result, for whose node a
// second mask hides all cells from them.
#pragma once

#include "alora-work.h"
#include "ggml.h"

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <unordered_map>
#include <vector>

struct alora_segments;

// Memory for the nodes of a context, which are computed one after the other.
class alora_workspace {
  public:
    // Room for `n` floats, aligned; what was in there before may be gone.
    void    reserve(int64_t n);
    float * data() const { return aligned; }

  private:
    std::unique_ptr<float[]> memory;
    float *                  aligned = nullptr;
    int64_t                  size    = 0;
};

// Which way attention is computed; ALORA_CPU_ATTENTION says it when a context is made.
enum class alora_attention_path {
    choose,  // for adapted tokens, whichever is faster
    stock,   // upstream's node
    ours,    // this one wherever it can, in graphs of the base too
};

alora_attention_path alora_attention_path_wanted();

// The attention nodes of one graph, which point into this, so it lives as long as the graph.
class alora_attention {
  public:
    // Our node, or `stock`, a GGML_OP_FLASH_ATTN_EXT, where we cannot compute it or, if `choose`,
    // are not faster. `n_threads`: most that will compute it. `only`: the tokens to compute, of one
    // stream, where `stock` is to compute the others; null: all.
    ggml_tensor * node(
            ggml_context * ctx, ggml_tensor * stock, alora_workspace & space, int n_threads,
            bool choose, const alora_segments * only);

    static bool is_node(const ggml_tensor & t);

    // What a node knows beside its sources.
    struct work {
        alora_workspace *  space;
        float              scale;
        float              soft_cap;
        std::vector<float> slopes;  // [n_head], empty without ALiBi

        const alora_segments * only;

        int64_t n_tokens;        // of a stream, at most
        int64_t group;           // query heads for each K/V head
        int64_t tokens_at_once;  // in a unit
        int64_t run;             // keys in a unit
        int64_t n_runs;
        int     n_threads;
        int64_t scratch;  // floats for each thread
        int64_t partial;  // floats for each unit

        // A unit is a run of keys for a block of tokens, K/V head and stream; the last of these to
        // be computed has them all merged.
        std::unique_ptr<std::atomic<int64_t>[]> done;  // [streams * heads * blocks]
        alora_work                              parts;
    };

  private:
    // `mask` for everybody but `segments`.
    ggml_tensor * without(ggml_context * ctx, const alora_segments & segments, ggml_tensor * mask);

    std::list<work> all;

    std::unordered_map<const ggml_tensor *, ggml_tensor *> masks;  // by the one they are made of
};
