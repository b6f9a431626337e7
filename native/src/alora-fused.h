// An adapted product on the CPU as two nodes of the graph: shrink, A·x of all targets that multiply the
// same x, and then per target expand, B·(A·x), added in place to the base's result. They read the slots
// from host memory, so batches of one slot and of several use one graph, and rows of the base cost
// nothing. Where experts are chosen by the graph itself, a third node sorts the rows by expert, once
// for all targets of that choice.
#pragma once

#include "alora-chunks.h"
#include "alora-segments.h"

#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

struct alora_target;
struct ggml_tensor;
struct llm_graph_context;

// The fused products of one graph. The nodes point into this, so it lives as long as the graph.
class alora_fused {
  public:
    // The rows of a product: of x's where each is multiplied once, else of (token, expert).
    struct product_rows {
        const alora_segments * segments;
        int64_t                n;
        ggml_tensor *          routed = nullptr;  // the node that fills `segments`, if one does
    };

    // The rows of products with the experts `ids` [n_used, n_tokens] of each token.
    product_rows route(
            const llm_graph_context & graph, const alora_segments & tokens, ggml_tensor * ids);

    // `res` plus what `target` adds to it. `sharing`, called when x is seen for the first time, says
    // which targets will be multiplied with it besides.
    template <typename F>
    ggml_tensor * product(
            const llm_graph_context & graph, const product_rows & rows, const alora_target & target,
            const F & sharing, ggml_tensor * x, ggml_tensor * res) {
        const part * found = find(target, rows, x);
        return expand(graph, rows, found ? *found : shrink(graph, rows, sharing(), x), res);
    }

    // What the nodes know beside their sources.

    struct part {
        const alora_target * target;
        int64_t              offset;  // of its A·x in a row of y
        ggml_tensor *        y;       // F32 [sum of ranks, n_rows]
    };

    struct route_node {
        explicit route_node(const alora_segments & tokens) : tokens(tokens) {}

        const alora_segments & tokens;
        alora_segments         sorted;
    };

    struct shrink_node {
        explicit shrink_node(const alora_segments & segments) : segments(segments) {}

        const alora_segments & segments;
        std::vector<part>      parts;
        alora_chunks           chunks;
    };

    struct expand_node {
        expand_node(const alora_segments & segments, const part & what) :
            segments(segments), what(what) {}

        const alora_segments & segments;
        const part             what;
        alora_chunks           chunks;
    };

  private:
    const part * find(
            const alora_target & target, const product_rows & rows, const ggml_tensor * x) const;

    // Returns the part of the first target.
    const part & shrink(
            const llm_graph_context & graph, const product_rows & rows,
            const std::vector<const alora_target *> & targets, ggml_tensor * x);
    ggml_tensor * expand(
            const llm_graph_context & graph, const product_rows & rows, const part & what,
            ggml_tensor * res);

    std::list<route_node>  routes;
    std::list<shrink_node> shrinks;
    std::list<expand_node> expands;

    std::unordered_map<const ggml_tensor *, product_rows>                     by_ids;
    std::unordered_map<const ggml_tensor *, std::vector<const shrink_node *>> by_input;
};
