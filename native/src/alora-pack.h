// Packing adapter matrices as products want them: types, padding, rows and tiles. Host memory
// only; knows nothing of graphs or backends.
#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>
#include <vector>

// A stack of `count` matrices of `rows` rows with `cols` values each, row by row, as F32.
struct alora_matrices {
    int64_t            cols  = 0;
    int64_t            rows  = 0;
    int64_t            count = 1;
    std::vector<float> values;
};

// The types an adapter's tensors may have in a file.
bool alora_type_readable(ggml_type type);

// A stack's type for a tensor of a readable type: itself, or F16 for Q8_0, whose blocks of 32
// would not survive the padding of ranks.
ggml_type alora_type_stacked(ggml_type type);

// The type that holds values of both stacks' types exactly.
ggml_type alora_type_common(ggml_type a, ggml_type b);

// Values of `n` elements of `type` at `data`, in any readable type.
std::vector<float> alora_to_f32(ggml_type type, const void * data, int64_t n);

// Whether every value is finite in `type`.
bool alora_fits(const std::vector<float> & values, ggml_type type);

// Bytes of `type` for `count` matrices of `rows` x `cols`: `source` in the upper left
// corner of each, zeros elsewhere. rows >= source.rows and cols >= source.cols.
std::vector<uint8_t> alora_pack(
        const alora_matrices & source, ggml_type type, int64_t rows, int64_t cols);

// `n` rows of `cols` values of a readable type as alora-kernels.h has them. Nothing is rounded.
std::vector<uint8_t> alora_pack_rows(const void * data, ggml_type type, int64_t cols, int64_t n);

// `count` matrices of `rows` x `cols` of a readable type in alora-kernels.h's tiles: for each 64 rows of
// a matrix, their first columns, then their second columns and so on, zeros for rows that do not exist.
// Nothing is rounded: what is Q8_0 keeps its blocks' scales and values, in groups.
std::vector<uint8_t> alora_pack_tiles(
        const void * data, ggml_type type, int64_t cols, int64_t rows, int64_t count);
