#include "alora-pack.h"

#include "alora-kernels.h"

#include <cmath>
#include <cstring>

bool alora_type_readable(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 ||
           type == GGML_TYPE_Q8_0;
}

ggml_type alora_type_stacked(ggml_type type) {
    return type == GGML_TYPE_Q8_0 ? GGML_TYPE_F16 : type;
}

ggml_type alora_type_common(ggml_type a, ggml_type b) {
    return a == b ? a : GGML_TYPE_F32;
}

std::vector<float> alora_to_f32(ggml_type type, const void * data, int64_t n) {
    std::vector<float> values(n);
    if (type == GGML_TYPE_F32) {
        memcpy(values.data(), data, n * sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(data, values.data(), n);
    }
    return values;
}

bool alora_fits(const std::vector<float> & values, ggml_type type) {
    const float largest = type == GGML_TYPE_F16 ? 65504.0f : 3.38e38f;
    for (const float value : values) {
        // false for NaN too
        if (!(std::fabs(value) <= largest)) {
            return false;
        }
    }
    return true;
}

static void write_row(const float * values, void * out, ggml_type type, int64_t n) {
    switch (type) {
        case GGML_TYPE_F16:
            ggml_fp32_to_fp16_row(values, (ggml_fp16_t *) out, n);
            break;
        case GGML_TYPE_BF16:
            ggml_fp32_to_bf16_row(values, (ggml_bf16_t *) out, n);
            break;
        default:
            memcpy(out, values, n * sizeof(float));
            break;
    }
}

std::vector<uint8_t> alora_pack(
        const alora_matrices & source, ggml_type type, int64_t rows, int64_t cols) {
    const size_t         row_size = ggml_row_size(type, cols);
    std::vector<uint8_t> packed(source.count * rows * row_size, 0);

    for (int64_t m = 0; m < source.count; ++m) {
        for (int64_t i = 0; i < source.rows; ++i) {
            const float * from = source.values.data() + (m * source.rows + i) * source.cols;
            write_row(from, packed.data() + (m * rows + i) * row_size, type, source.cols);
        }
    }
    return packed;
}

// A block of Q8_0 as ggml has it: its scale, then its values.
static constexpr size_t Q8_0_SIZE = sizeof(ggml_fp16_t) + ALORA_BLOCK;

std::vector<uint8_t> alora_pack_rows(const void * data, ggml_type type, int64_t cols, int64_t n) {
    std::vector<uint8_t> packed(n * alora_row_size(type, cols));
    if (type != GGML_TYPE_Q8_0) {
        memcpy(packed.data(), data, packed.size());
        return packed;
    }
    const uint8_t * from     = (const uint8_t *) data;
    uint8_t *       to       = packed.data();
    const int64_t   n_blocks = cols / ALORA_BLOCK;
    for (int64_t i = 0; i < n; ++i, to += alora_row_size(type, cols)) {
        for (int64_t k = 0; k < n_blocks; ++k, from += Q8_0_SIZE) {
            ggml_fp16_t half;
            memcpy(&half, from, sizeof(half));
            const float scale = ggml_fp16_to_fp32(half);
            memcpy(to + k * sizeof(scale), &scale, sizeof(scale));
            memcpy(to + n_blocks * sizeof(scale) + k * ALORA_BLOCK, from + sizeof(half),
                    ALORA_BLOCK);
        }
    }
    return packed;
}

// Values of `size` bytes: row i, column j of a matrix lies at [i/64][j][i%64].
static void pack_plain(
        const uint8_t * from, uint8_t * to, size_t size, int64_t cols, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < cols; ++j) {
            const int64_t at = (i / ALORA_TILE * cols + j) * ALORA_TILE + i % ALORA_TILE;
            memcpy(to + at * size, from + (i * cols + j) * size, size);
        }
    }
}

static void pack_q8_0(const uint8_t * from, uint8_t * to, int64_t cols, int64_t rows) {
    auto *        groups   = (alora_tile_group *) to;
    const int64_t n_groups = cols / ALORA_BLOCK;
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t g = 0; g < n_groups; ++g) {
            alora_tile_group & group = groups[i / ALORA_TILE * n_groups + g];
            memcpy(&group.scale[i % ALORA_TILE], from, sizeof(uint16_t));
            for (int64_t j = 0; j < ALORA_BLOCK; ++j) {
                group.value[j][i % ALORA_TILE] = (int8_t) from[sizeof(uint16_t) + j];
            }
            from += Q8_0_SIZE;
        }
    }
}

std::vector<uint8_t> alora_pack_tiles(
        const void * data, ggml_type type, int64_t cols, int64_t rows, int64_t count) {
    const size_t one  = (rows + ALORA_TILE - 1) / ALORA_TILE * alora_tile_size(type, cols);
    const size_t size = ggml_row_size(type, cols) * rows;

    std::vector<uint8_t> packed(count * one, 0);
    for (int64_t m = 0; m < count; ++m) {
        const uint8_t * from = (const uint8_t *) data + m * size;
        uint8_t *       to   = packed.data() + m * one;
        if (type == GGML_TYPE_Q8_0) {
            pack_q8_0(from, to, cols, rows);
        } else {
            pack_plain(from, to, ggml_type_size(type), cols, rows);
        }
    }
    return packed;
}
