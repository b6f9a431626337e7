// One steering vector: what it does to the stream, and where.
#pragma once

#include "alora.h"

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

// A place in the graph: behind a block, or behind its attention or its FFN.
struct alora_point {
    int32_t hook;  // alora_hook
    int32_t layer;

    bool operator<(const alora_point & other) const {
        return layer != other.layer ? layer < other.layer : hook < other.hook;
    }
};

// What one vector does at one point.
struct alora_edit_at {
    alora_edit         kind;
    float              scale;
    int32_t            n_directions;
    std::vector<float> directions;  // [n_directions][n_embd]
};

struct alora_vector {
    std::map<alora_point, std::vector<alora_edit_at>> edits;
};

// A vector that a token uses, and at what scale.
using alora_vector_use = std::pair<const alora_vector *, float>;
