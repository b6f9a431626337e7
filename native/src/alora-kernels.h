// The loops of our nodes on the CPU, one set of them per instruction set: an adapter's shrink and
// expand, and attention. Host memory only; knows nothing of graphs, slots or the bank.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <vector>

// Outputs in a tile of B. B lies in tiles of [rank][64], so that adding its `rank` rows to 64
// outputs reads memory from front to back, whatever the rank and whatever the instruction set.
static constexpr int64_t ALORA_TILE = 64;

// Values that have a scale in common in Q8_0.
static constexpr int64_t ALORA_BLOCK = 32;

// Bytes of a row of A: `n` values, or of Q8_0 the scales of its blocks as floats, then their values.
constexpr int64_t alora_row_size(ggml_type type, int64_t n) {
    return type == GGML_TYPE_Q8_0 ? n / ALORA_BLOCK * 4 + n : type == GGML_TYPE_F32 ? n * 4 : n * 2;
}

// A tile of B that is Q8_0 in a file, where a scale is for 32 values of one output: a group for each 32
// of the rank.
struct alora_tile_group {
    uint16_t scale[ALORA_TILE];  // F16
    int8_t   value[ALORA_BLOCK][ALORA_TILE];
};

// Bytes of a tile.
constexpr int64_t alora_tile_size(ggml_type type, int64_t rank) {
    return type == GGML_TYPE_Q8_0  ? rank / ALORA_BLOCK * (int64_t) sizeof(alora_tile_group)
           : type == GGML_TYPE_F32 ? rank * ALORA_TILE * 4
                                   : rank * ALORA_TILE * 2;
}

// Shrink: y_t[i] = scale_t * dot(a_i, x_t) for the rows i of A and the tokens t.
struct alora_shrink {
    const void *          a;  // n_rows rows of n values
    int64_t               n;
    int64_t               n_rows;
    int64_t               n_tokens;
    const float * const * x;      // [n_tokens], n values each
    float * const *       y;      // [n_tokens], n_rows values each
    const float *         scale;  // [n_tokens]
};

// Expand: out_t[i] += sum over j of y_t[j] * b[i][j] for the outputs i and the tokens t.
struct alora_expand {
    const void *          b;  // tiles of [rank][64]
    int64_t               rank;
    int64_t               n_out;  // outputs from the first tile on; the last tile may be cut
    int64_t               n_tokens;
    const float * const * y;    // [n_tokens], rank values each
    float * const *       out;  // [n_tokens], n_out values each
};

// Attention of some rows of queries to one split of the keys, as in split-KV decoding. The rows are
// tokens times the query heads of one K/V head: token t's head g is row t*group + g.
struct alora_attend {
    struct cells {
        const char * data;    // the first
        size_t       stride;  // bytes from one to the next
        ggml_type    type;    // F32, F16, BF16, Q8_0 or, with to_float, any other
        int64_t      d;       // values in each, a multiple of 16
        void (*to_float)(const void * from, float * to, int64_t d) = nullptr;
    };

    cells                    k;
    cells                    v;
    int64_t                  n_keys;
    int64_t                  n_tokens;
    int64_t                  group;
    const float * const *    q;      // [n_tokens*group], k.d values each
    const uint16_t * const * mask;   // [n_tokens], n_keys F16 values each; null: all are seen
    const float *            slope;  // [group] by which a head multiplies the mask; null: 1
    float                    scale;
    float                    soft_cap;  // 0: none

    float * scratch;  // alora_scratch_size() floats
    float * partial;  // alora_partial_size() floats, the result: read when splits are combined
};

// Attention to all keys out of that to each split, in their order.
struct alora_splits {
    float *         partial;  // [n_splits], one after the other; changed
    int64_t         n_splits;
    int64_t         n_rows;
    int64_t         d;       // values in a cell of V
    const float *   sink;    // [n_rows], a score that takes part without a value; null: none
    float * const * out;     // [n_rows], d values each
    int64_t         stride;  // floats from one to the next of `partial`
};

// Keys in a tile, which are computed at once: as floats, K and V of heads of 128 take 64 KiB, which
// leaves the second level of the cache to the rows' results.
static constexpr int64_t ALORA_KEYS = 64;

// In a mask of F16: -inf, a key that is not seen.
static constexpr uint16_t ALORA_HIDDEN = 0xfc00;

constexpr int64_t alora_partial_size(int64_t n_rows, int64_t d_v) {
    return (n_rows + 15) / 16 * 16 * (d_v + 2);
}

constexpr int64_t alora_scratch_size(int64_t n_rows, int64_t d_k, int64_t d_v) {
    return (n_rows + 15) / 16 * 16 * d_k + ALORA_KEYS * (d_k + d_v + 2 * 64) + 64;
}

// A value's result is the same whichever tokens and rows are computed beside it. Adapters are F16,
// BF16, F32 or Q8_0, and finite (the bank checks both).
struct alora_kernels {
    const char * name;
    void (*shrink)(ggml_type type, const alora_shrink & op);
    void (*expand)(ggml_type type, const alora_expand & op);
    void (*attend)(const alora_attend & op);
    void (*combine)(const alora_splits & op);
    int64_t attend_rows;  // from so many rows on they beat ggml's own attention
};

// The fastest set that this processor runs.
const alora_kernels & alora_kernels_best();

// All sets that this processor runs, the fastest first; for tests.
std::vector<const alora_kernels *> alora_kernels_all();

// One per source file, null where it was compiled for another processor.
const alora_kernels * alora_kernels_avx512();
const alora_kernels * alora_kernels_avx2();
const alora_kernels * alora_kernels_neon();
const alora_kernels * alora_kernels_plain();
