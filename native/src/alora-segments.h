// Which rows of a batch are adapted, in the order in which the CPU's own nodes compute them.
#pragma once

#include "alora-slots.h"

#include <cstdint>
#include <vector>

struct ggml_tensor;

// The rows of a product in groups that use one slot's matrix, in an order that puts these together.
// Rows of the base are in none.
struct alora_segments {
    struct segment {
        int32_t slot;
        int32_t expert;
        int32_t first;  // in `row` and `scale`
        int32_t n;
    };

    std::vector<int32_t> row;
    std::vector<float>   scale;  // [row.size()]
    std::vector<segment> all;

    void fill(const std::vector<alora_choice> & choices);

    // The rows that `tokens` have where token t is multiplied with each of its experts, `ids`
    // [n_used, n_tokens]: row t*n_used + k with expert ids[k, t].
    void route(const alora_segments & tokens, const ggml_tensor & ids);

  private:
    struct entry {
        int32_t slot;
        int32_t expert;
        int32_t row;
        float   scale;
    };

    void group();  // fills the rest from `entries`

    std::vector<entry> entries;
};
