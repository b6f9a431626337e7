// Packing: types, rank padding, tiles, and what does not fit.
#include "alora-kernels.h"
#include "alora-pack.h"
#include "check.h"

#include <cmath>
#include <cstring>
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

// Row i, column j of a matrix lies at [i/64][j][i%64], and its last tile ends in zeros.
static void test_tiles() {
    const int64_t cols = 3, rows = 70, n = 2 * cols * ALORA_TILE;
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16 }) {
        const auto given  = alora_pack(counting(cols, rows, 2), type, rows, cols);
        const auto stored = alora_to_f32(type, given.data(), 2 * rows * cols);
        const auto packed = alora_pack_tiles(given.data(), type, cols, rows, 2);
        CHECK(packed.size() == (size_t) (2 * 2 * alora_tile_size(type, cols)));
        const auto values = alora_to_f32(type, packed.data(), 2 * n);
        for (int64_t of = 0; of < 2; ++of) {
            for (int64_t i = 0; i < 2 * ALORA_TILE; ++i) {
                for (int64_t j = 0; j < cols; ++j) {
                    const float   expected = i < rows ? stored[(of * rows + i) * cols + j] : 0.0f;
                    const int64_t at = (i / ALORA_TILE * cols + j) * ALORA_TILE + i % ALORA_TILE;
                    CHECK(values[of * n + at] == expected);
                }
            }
        }
    }
}

// The scales of a row's blocks, then its values; other types as they are.
static void test_rows() {
    const int64_t cols = 3 * ALORA_BLOCK, rows = 5;
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0 }) {
        std::vector<uint8_t> given(rows * ggml_row_size(type, cols));
        for (size_t i = 0; i < given.size(); ++i) {
            given[i] = (uint8_t) (i * 29 % 120);  // finite in every type
        }
        const auto packed = alora_pack_rows(given.data(), type, cols, rows);
        CHECK(packed.size() == (size_t) (rows * alora_row_size(type, cols)));
        if (type != GGML_TYPE_Q8_0) {
            CHECK(packed == given);
            continue;
        }
        const auto expected = alora_to_f32(type, given.data(), rows * cols);
        for (int64_t i = 0; i < rows; ++i) {
            const uint8_t * row = packed.data() + i * alora_row_size(type, cols);
            for (int64_t k = 0; k < cols; ++k) {
                float scale;
                memcpy(&scale, row + k / ALORA_BLOCK * 4, 4);
                const int8_t value = (int8_t) row[cols / ALORA_BLOCK * 4 + k];
                CHECK(scale * value == expected[i * cols + k]);
            }
        }
    }
}

// Bit for bit what was in the file, only elsewhere.
static void test_q8_0_in_tiles() {
    const int64_t        cols = 2 * ALORA_BLOCK, rows = 70, count = 2;
    const size_t         row_size = ggml_row_size(GGML_TYPE_Q8_0, cols);
    std::vector<uint8_t> given(count * rows * row_size);
    for (size_t i = 0; i < given.size(); ++i) {
        given[i] = (uint8_t) (i * 37 + i / 251);
    }
    const auto packed = alora_pack_tiles(given.data(), GGML_TYPE_Q8_0, cols, rows, count);
    CHECK(packed.size() == (size_t) (count * 2 * alora_tile_size(GGML_TYPE_Q8_0, cols)));
    const auto * groups = (const alora_tile_group *) packed.data();
    for (int64_t i = 0; i < count * rows; ++i) {
        const int64_t tile = i / rows * 2 + i % rows / ALORA_TILE, column = i % rows % ALORA_TILE;
        for (int64_t j = 0; j < cols; ++j) {
            const uint8_t *          block = given.data() + i * row_size + j / ALORA_BLOCK * 34;
            const alora_tile_group & group = groups[tile * 2 + j / ALORA_BLOCK];
            CHECK(memcmp(&group.scale[column], block, 2) == 0);
            CHECK(group.value[j % ALORA_BLOCK][column] == (int8_t) block[2 + j % ALORA_BLOCK]);
        }
    }
}

static void test_q8_0_is_read_and_stacked_as_f16() {
    std::vector<float> row(32);
    for (int i = 0; i < 32; ++i) {
        row[i] = (float) (i - 16) / 16.0f;
    }
    std::vector<uint8_t> quantized(ggml_row_size(GGML_TYPE_Q8_0, 32));
    ggml_quantize_chunk(GGML_TYPE_Q8_0, row.data(), quantized.data(), 0, 1, 32, nullptr);

    CHECK(alora_type_readable(GGML_TYPE_Q8_0));
    CHECK(alora_type_stacked(GGML_TYPE_Q8_0) == GGML_TYPE_F16);
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
    test_rows();
    test_tiles();
    test_q8_0_in_tiles();
    test_q8_0_is_read_and_stacked_as_f16();
    test_types();
    test_what_does_not_fit();
    return 0;
}
