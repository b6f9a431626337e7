// The two loops of an adapter's product on the CPU, one set of them per instruction set. Host
// memory only; knows nothing of graphs, slots or the bank.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <vector>

// Outputs in a tile of B. B lies in tiles of [rank][64], so that adding its `rank` rows to 64
// outputs reads memory from front to back, whatever the rank and whatever the instruction set.
static constexpr int64_t ALORA_TILE = 64;

// y_t[i] = scale_t * dot(a_i, x_t) for the rows i of A and the tokens t.
struct alora_dot {
    const void *          a;  // n_rows rows of n values
    int64_t               n;
    int64_t               n_rows;
    int64_t               n_tokens;
    const float * const * x;      // [n_tokens], n values each
    float * const *       y;      // [n_tokens], n_rows values each
    const float *         scale;  // [n_tokens]
};

// out_t[i] += sum over j of y_t[j] * b[i][j] for the outputs i and the tokens t.
struct alora_axpy {
    const void *          b;  // tiles of [rank][64]
    int64_t               rank;
    int64_t               n_out;  // outputs from the first tile on; the last tile may be cut
    int64_t               n_tokens;
    const float * const * y;    // [n_tokens], rank values each
    float * const *       out;  // [n_tokens], n_out values each
};

// A value's result is the same whichever tokens and rows are computed beside it. Adapters are F16,
// BF16 or F32, and finite (the bank checks both).
struct alora_kernels {
    const char * name;
    void (*dot)(ggml_type type, const alora_dot & work);
    void (*axpy)(ggml_type type, const alora_axpy & work);
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
