// Attention of few tokens to many cached ones on the CPU, as one node in place of upstream's: what
// is read of the cache serves every query that sees it, all heads of a group, all tokens and all
// forks. The keys of long caches are split, as in split-KV decoding, and threads share the splits; who
// computes one makes no difference. Beside tokens of the base the node writes the adapted ones' rows of
// upstream's result, for whose node a second mask hides all cells from them.
#pragma once

#include "alora-chunks.h"
#include "ggml.h"

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <unordered_map>
#include <vector>

class alora_host;
class alora_workspace;
struct alora_segments;

// The attention nodes of one graph, which point into this, so it lives as long as the graph.
class alora_attention {
  public:
    // Our node, or `stock`, a GGML_OP_FLASH_ATTN_EXT, where we cannot compute it or, if `choose`,
    // are not faster. `n_threads`: most that will compute it. `only`: the tokens to compute, of one
    // stream, where `stock` is to compute the others; null: all.
    ggml_tensor * build(
            const alora_host & host, ggml_tensor * stock, alora_workspace & space, int n_threads,
            bool choose, const alora_segments * only);

    static bool is_node(const ggml_tensor & t);

    // What a node knows beside its sources.
    struct node {
        alora_workspace *  space;
        float              scale;
        float              soft_cap;
        std::vector<float> slopes;  // [n_head], empty without ALiBi

        const alora_segments * only;

        int64_t n_tokens;         // of a stream, at most
        int64_t group;            // query heads for each K/V head
        int64_t tokens_at_once;   // in a block
        int64_t keys_in_a_split;  // the last may have fewer
        int64_t n_splits;
        int     n_threads;
        int64_t scratch;  // floats for each thread
        int64_t partial;  // floats for each chunk

        // A chunk of the work is a split of the keys for a block of tokens, a K/V head and a stream;
        // the last split of a block to be computed has all of them combined.
        std::unique_ptr<std::atomic<int64_t>[]> done;  // [streams * heads * blocks]
        alora_chunks                            chunks;
    };

  private:
    // `mask` for everybody but `segments`.
    ggml_tensor * without(
            const alora_host & host, const alora_segments & segments, ggml_tensor * mask);

    std::list<node> nodes;

    std::unordered_map<const ggml_tensor *, ggml_tensor *> masks;  // by the one they are made of
};
