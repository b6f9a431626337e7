// An adapted product on the CPU as two nodes of the graph: the sums A·x of all targets that multiply
// the same x, and then per target B·(A·x), added in place to the base's result. They read the slots
// from host memory, so batches of one slot and of several use one graph, and rows of the base cost
// nothing.
#pragma once

#include "alora-slots.h"

#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

struct alora_target;
struct ggml_tensor;
struct llm_graph_context;

// The rows of a product in groups that use one slot, in an order that puts these together. Rows of
// the base are in none.
struct alora_segments {
    struct segment {
        int32_t slot;
        int32_t first;  // in `row` and `scale`
        int32_t n;
    };

    std::vector<int32_t> row;
    std::vector<float>   scale;  // [row.size()]
    std::vector<segment> all;

    void fill(const std::vector<alora_choice> & choices);
};

// The fused products of one graph. The nodes point into this, so it lives as long as the graph.
class alora_fused {
  public:
    // `res` plus what `target` adds to it. `sharing`, called when x is seen for the first time, says
    // which targets will be multiplied with it besides.
    template <typename F>
    ggml_tensor * product(
            const llm_graph_context & graph, const alora_segments & segments,
            const alora_target & target, const F & sharing, ggml_tensor * x, ggml_tensor * res) {
        const part * found = find(target, x);
        return add_product(
                graph, segments, found ? *found : add_sums(graph, segments, sharing(), x), res);
    }

    // What the nodes know beside their sources.

    struct part {
        const alora_target * target;
        int64_t              offset;  // of its sums in a row of y
        ggml_tensor *        y;       // F32 [sum of ranks, n_rows]
    };

    struct sums {
        const alora_segments * segments;
        std::vector<part>      parts;
    };

    struct addition {
        const alora_segments * segments;
        part                   what;
    };

  private:
    const part * find(const alora_target & target, const ggml_tensor * x) const;

    // Returns the part of the first target.
    const part & add_sums(
            const llm_graph_context & graph, const alora_segments & segments,
            const std::vector<const alora_target *> & targets, ggml_tensor * x);
    ggml_tensor * add_product(
            const llm_graph_context & graph, const alora_segments & segments, const part & what,
            ggml_tensor * res);

    std::list<sums>     all_sums;
    std::list<addition> additions;

    std::unordered_map<const ggml_tensor *, std::vector<const sums *>> by_input;
};
