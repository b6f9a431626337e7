#include "alora-pack.h"

#include <cmath>
#include <cstring>

bool alora_type_readable(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 ||
           type == GGML_TYPE_Q8_0;
}

ggml_type alora_type_stored(ggml_type type) {
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

std::vector<uint8_t> alora_pack_tiles(const alora_matrices & source, ggml_type type, int64_t tile) {
    const int64_t  n_tiles = (source.rows + tile - 1) / tile;
    alora_matrices tiled   = { tile, n_tiles * source.cols, source.count, {} };
    tiled.values.resize(tiled.count * tiled.rows * tiled.cols, 0.0f);
    for (int64_t m = 0; m < source.count; ++m) {
        const float * from = source.values.data() + m * source.rows * source.cols;
        float *       to   = tiled.values.data() + m * tiled.rows * tiled.cols;
        for (int64_t i = 0; i < source.rows; ++i) {
            for (int64_t j = 0; j < source.cols; ++j) {
                to[((i / tile) * source.cols + j) * tile + i % tile] = from[i * source.cols + j];
            }
        }
    }
    return alora_pack(tiled, type, tiled.rows, tiled.cols);
}
