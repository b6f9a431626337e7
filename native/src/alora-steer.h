// Steering on the CPU: a node of our own at each point of the graph where a loaded vector acts, which
// edits the rows of the tokens that use one and copies the others. Which those are it reads from
// host memory when it computes, so one graph serves whatever is active.
#pragma once

#include "alora-chunks.h"
#include "alora-vectors.h"

#include <cstdint>
#include <list>
#include <vector>

class alora_host;
struct ggml_context;
struct ggml_tensor;

// Which vectors each row of a batch uses.
struct alora_steered {
    struct row {
        int32_t first;  // in `uses`
        int32_t n;      // 0: not steered
    };

    std::vector<row>              rows;  // one per row of the batch
    std::vector<alora_vector_use> uses;

    void fill(const alora_vectors & vectors, const std::vector<alora_choice> & choices);
};

// The steering nodes of one graph, which point into this, so it lives as long as the graph.
class alora_steer {
  public:
    // `stream` with the edits of a point.
    ggml_tensor * build(
            const alora_host & host, const alora_steered & steered, const alora_point & point,
            ggml_tensor * stream);

    // The same in ggml's operations, by the device whose memory `stack` is in.
    ggml_tensor * build_on_device(
            ggml_context * ctx, const alora_steered & steered,
            const alora_directions::stack & stack, ggml_tensor * stream);

    // Tells devices which rows use what.
    void set_inputs() const;

    // Whether it is the one node of its point that reads which rows are steered, or directions.
    static bool is_node(const ggml_tensor & t);

    // What a node knows beside its source.
    struct node {
        node(const alora_steered & steered, const alora_point & point) :
            steered(steered), point(point) {}

        const alora_steered & steered;
        const alora_point     point;
        alora_chunks          chunks;
    };

  private:
    // What a device multiplies with, for each row.
    struct input {
        const alora_steered &           steered;
        const alora_directions::stack & stack;
        ggml_tensor * factors;  // F32 [capacity, rows, 3]: added, of V h, of max(V h, 0)
        ggml_tensor * norms;    // F32 [1, rows, 2]: 1 to keep the norm, 1 not to
    };

    std::list<node>    nodes;
    std::vector<input> inputs;
};
