// Packing: types, rank padding, tiles, and what does not fit.
#include "alora-pack.h"
#include "check.h"

#include <cmath>
#include <limits>

static alora_matrices counting(int64_t cols, int64_t rows, int64_t count) {
    alora_matrices m{ cols, rows, count, {} };
    for (int64_t i = 0; i < cols * rows * count; ++i) {
        m.values.push_back((float) i - 7.0f);
    }
    return m;
}

// Every value where the source has one, and zero in the padding.
static void check_packed(const alora_matrices & m, ggml_type type, int64_t rows, int64_t cols) {
    const auto packed = alora_pack(m, type, rows, cols);
    CHECK(packed.size() == (size_t) (m.count * rows) * ggml_row_size(type, cols));
    const auto values = alora_to_f32(type, packed.data(), m.count * rows * cols);
    for (int64_t k = 0; k < m.count; ++k) {
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t j = 0; j < cols; ++j) {
                const bool  inside   = i < m.rows && j < m.cols;
                const float expected = inside ? m.values[(k * m.rows + i) * m.cols + j] : 0.0f;
                CHECK(values[(k * rows + i) * cols + j] == expected);
            }
        }
    }
}

static void test_padding() {
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16 }) {
        check_packed(counting(6, 5, 1), type, 5, 6);  // nothing to pad
        check_packed(counting(6, 5, 1), type, 8, 6);  // A: more rows
        check_packed(counting(5, 6, 1), type, 6, 8);  // B: longer rows
        check_packed(counting(3, 4, 5), type, 8, 8);  // experts
    }
}

// Row i, column j of a matrix lies at [i/4][j][i%4], and its last tile ends in zeros.
static void test_tiles() {
    const alora_matrices m      = counting(3, 10, 2);
    const int64_t        n      = 3 * 3 * 4;
    const auto           packed = alora_pack_tiles(m, GGML_TYPE_F16, 4);
    CHECK(packed.size() == 2 * n * sizeof(ggml_fp16_t));
    const auto values = alora_to_f32(GGML_TYPE_F16, packed.data(), 2 * n);
    for (int64_t of = 0; of < 2; ++of) {
        for (int64_t i = 0; i < 12; ++i) {
            for (int64_t j = 0; j < 3; ++j) {
                const float expected = i < 10 ? m.values[(of * 10 + i) * 3 + j] : 0.0f;
                CHECK(values[of * n + ((i / 4) * 3 + j) * 4 + i % 4] == expected);
            }
        }
    }
}

static void test_q8_0_is_read_and_kept_as_f16() {
    std::vector<float> row(32);
    for (int i = 0; i < 32; ++i) {
        row[i] = (float) (i - 16) / 16.0f;
    }
    std::vector<uint8_t> quantized(ggml_row_size(GGML_TYPE_Q8_0, 32));
    ggml_quantize_chunk(GGML_TYPE_Q8_0, row.data(), quantized.data(), 0, 1, 32, nullptr);

    CHECK(alora_type_readable(GGML_TYPE_Q8_0));
    CHECK(alora_type_stored(GGML_TYPE_Q8_0) == GGML_TYPE_F16);
    const auto values = alora_to_f32(GGML_TYPE_Q8_0, quantized.data(), 32);
    for (int i = 0; i < 32; ++i) {
        CHECK(std::fabs(values[i] - row[i]) <= 1.0f / 127);
    }
}

static void test_types() {
    CHECK(!alora_type_readable(GGML_TYPE_I32) && !alora_type_readable(GGML_TYPE_F64));
    CHECK(alora_type_common(GGML_TYPE_F16, GGML_TYPE_F16) == GGML_TYPE_F16);
    // neither holds the other's values
    CHECK(alora_type_common(GGML_TYPE_F16, GGML_TYPE_BF16) == GGML_TYPE_F32);
}

static void test_what_does_not_fit() {
    const float inf = std::numeric_limits<float>::infinity();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16 }) {
        CHECK(alora_fits({ 0.0f, -1.0f, 3e4f }, type));
        CHECK(!alora_fits({ 0.0f, nan }, type));
        CHECK(!alora_fits({ -inf }, type));
    }
    CHECK(!alora_fits({ 8e4f }, GGML_TYPE_F16));
    CHECK(alora_fits({ 8e4f }, GGML_TYPE_BF16));
}

int main() {
    test_padding();
    test_tiles();
    test_q8_0_is_read_and_kept_as_f16();
    test_types();
    test_what_does_not_fit();
    return 0;
}
