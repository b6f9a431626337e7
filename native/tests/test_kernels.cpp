// Every set of loops that this processor runs, against float64, over odd sizes. The buffers end
// where the data ends, so that the address sanitizer sees a read or write past it. Links nothing of
// ggml, so that it can be built for another processor and run under emulation.
#include "alora-kernels.h"
#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>

static std::mt19937 rng(7);

static int64_t below(int64_t n) {
    return (int64_t) (rng() % (uint64_t) n);
}

static std::vector<float> noise(int64_t n) {
    std::vector<float> values(n);
    for (float & value : values) {
        value = (float) ((int64_t) (rng() % 2001) - 1000) / 1000.0f;
    }
    return values;
}

// Rows of floats, each an allocation of its own, at an odd address as far as floats go.
struct rows {
    std::vector<std::unique_ptr<float[]>> data;
    std::vector<float *>                  at;

    rows(int64_t count, int64_t n) {
        for (int64_t i = 0; i < count; ++i) {
            data.emplace_back(new float[n + 1]);
            at.push_back(data.back().get() + 1);
            const auto values = noise(n);
            std::copy(values.begin(), values.end(), at.back());
        }
    }
};

static float value_of_f16(uint16_t bits) {
    const int   exponent  = (bits >> 10) & 0x1f;
    const int   mantissa  = bits & 0x3ff;
    const float magnitude = exponent == 0 ? std::ldexp((float) mantissa, -24)
                                          : std::ldexp((float) (1024 + mantissa), exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

static float value_of_bf16(uint16_t bits) {
    const uint32_t wide = (uint32_t) bits << 16;
    float          value;
    memcpy(&value, &wide, sizeof(value));
    return value;
}

// Random values of a type, of sizes up to 4, or Q8_0.
struct stored {
    std::unique_ptr<uint8_t[]> bytes;
    std::vector<float>         values;

    static uint16_t some_scale() { return (uint16_t) ((rng() & 0x83ff) | (rng() % 17) << 10); }

    void fill_rows(int64_t n, int64_t n_rows) {
        const int64_t n_blocks = n / ALORA_BLOCK, size = alora_row_size(GGML_TYPE_Q8_0, n);
        bytes.reset(new uint8_t[n_rows * size]);
        for (int64_t i = 0; i < n_rows; ++i) {
            uint8_t * row = bytes.get() + i * size;
            for (int64_t k = 0; k < n; ++k) {
                const float scale = value_of_f16(some_scale());
                if (k % ALORA_BLOCK == 0) {
                    memcpy(row + k / ALORA_BLOCK * 4, &scale, 4);
                }
                float of_block;
                memcpy(&of_block, row + k / ALORA_BLOCK * 4, 4);
                const int8_t value    = (int8_t) ((int) (rng() % 256) - 128);
                row[n_blocks * 4 + k] = (uint8_t) value;
                values.push_back(of_block * value);
            }
        }
    }

    void fill_groups(int64_t n) {
        const int64_t n_groups = n / ALORA_BLOCK / ALORA_TILE;
        bytes.reset(new uint8_t[n_groups * sizeof(alora_tile_group)]);
        for (int64_t i = 0; i < n_groups; ++i) {
            alora_tile_group group;
            for (uint16_t & scale : group.scale) {
                scale = some_scale();
            }
            for (auto & row : group.value) {
                for (int64_t c = 0; c < ALORA_TILE; ++c) {
                    row[c] = (int8_t) ((int) (rng() % 256) - 128);
                    values.push_back(value_of_f16(group.scale[c]) * row[c]);
                }
            }
            memcpy(bytes.get() + i * sizeof(group), &group, sizeof(group));
        }
    }

    // n_rows rows of n values or, in tiles, that many in all.
    stored(ggml_type type, int64_t n, int64_t n_rows, bool in_tiles) {
        if (type == GGML_TYPE_Q8_0) {
            in_tiles ? fill_groups(n * n_rows) : fill_rows(n, n_rows);
            return;
        }
        n *= n_rows;
        const size_t size = type == GGML_TYPE_F32 ? 4 : 2;
        bytes.reset(new uint8_t[n * size]);
        for (int64_t i = 0; i < n; ++i) {
            const uint16_t sign_and_mantissa = (uint16_t) (rng() & 0x807f);
            uint16_t       bits              = 0;
            if (type == GGML_TYPE_F16) {
                bits = (uint16_t) (sign_and_mantissa | (rng() % 17) << 10);
                values.push_back(value_of_f16(bits));
            } else {
                bits = (uint16_t) (sign_and_mantissa | (112 + rng() % 17) << 7);
                values.push_back(value_of_bf16(bits));
            }
            memcpy(bytes.get() + i * size, size == 2 ? (void *) &bits : (void *) &values[i], size);
        }
    }
};

// `n`, or the next multiple of what a type's blocks hold.
static int64_t in_blocks(ggml_type type, int64_t n) {
    return type == GGML_TYPE_Q8_0 ? (n + ALORA_BLOCK - 1) / ALORA_BLOCK * ALORA_BLOCK : n;
}

static void test_shrink(const alora_kernels & kernels, ggml_type type) {
    const int64_t n      = in_blocks(type, 1 + below(300));
    const int64_t n_rows = 1 + below(11), n_tokens = 1 + below(17);
    const stored  a(type, n, n_rows, false);
    rows          x(n_tokens, n), y(n_tokens, n_rows);
    const auto    scale = noise(n_tokens);
    kernels.shrink(
            type, { a.bytes.get(), n, n_rows, n_tokens, x.at.data(), y.at.data(), scale.data() });

    for (int64_t t = 0; t < n_tokens; ++t) {
        for (int64_t i = 0; i < n_rows; ++i) {
            double expected = 0.0, size = 0.0;
            for (int64_t k = 0; k < n; ++k) {
                const double term = (double) a.values[i * n + k] * x.at[t][k] * scale[t];
                expected += term;
                size += std::fabs(term);
            }
            CHECK(std::fabs(y.at[t][i] - expected) <= 1e-6 * size + 1e-30);
        }
    }
}

static void test_expand(const alora_kernels & kernels, ggml_type type) {
    const int64_t n_out = 1 + below(300), n_tokens = 1 + below(17);
    const int64_t rank    = in_blocks(type, 1 + below(100));
    const int64_t n_tiles = (n_out + ALORA_TILE - 1) / ALORA_TILE;
    const stored  b(type, n_tiles * ALORA_TILE, rank, true);
    rows          y(n_tokens, rank), out(n_tokens, n_out);

    std::vector<std::vector<float>> before;
    for (const float * row : out.at) {
        before.emplace_back(row, row + n_out);
    }
    kernels.expand(type, { b.bytes.get(), rank, n_out, n_tokens, y.at.data(), out.at.data() });

    for (int64_t t = 0; t < n_tokens; ++t) {
        for (int64_t i = 0; i < n_out; ++i) {
            double expected = before[t][i], size = std::fabs(before[t][i]);
            for (int64_t j = 0; j < rank; ++j) {
                const int64_t at   = ((i / ALORA_TILE) * rank + j) * ALORA_TILE + i % ALORA_TILE;
                const double  term = (double) b.values[at] * y.at[t][j];
                expected += term;
                size += std::fabs(term);
            }
            CHECK(std::fabs(out.at[t][i] - expected) <= 1e-6 * size + 1e-30);
        }
    }
}

// A token's result does not depend on which tokens are computed with it.
static void test_tokens_are_computed_alike(const alora_kernels & kernels, ggml_type type) {
    const int64_t      n = in_blocks(type, 100), rank = in_blocks(type, 12);
    const int64_t      n_out = 130, n_tokens = 16;
    const stored       a(type, n, rank, false), b(type, 3 * ALORA_TILE, rank, true);
    rows               x(n_tokens, n), y(n_tokens, rank), y1(n_tokens, rank);
    rows               out(n_tokens, n_out), out1(n_tokens, n_out);
    std::vector<float> scale(n_tokens, 0.5f);
    for (int64_t t = 0; t < n_tokens; ++t) {
        std::copy(out.at[t], out.at[t] + n_out, out1.at[t]);
        kernels.shrink(type, { a.bytes.get(), n, rank, 1, &x.at[t], &y1.at[t], &scale[t] });
        kernels.expand(type, { b.bytes.get(), rank, n_out, 1, &y1.at[t], &out1.at[t] });
    }
    kernels.shrink(
            type, { a.bytes.get(), n, rank, n_tokens, x.at.data(), y.at.data(), scale.data() });
    kernels.expand(type, { b.bytes.get(), rank, n_out, n_tokens, y.at.data(), out.at.data() });
    for (int64_t t = 0; t < n_tokens; ++t) {
        CHECK(std::equal(y.at[t], y.at[t] + rank, y1.at[t]));
        CHECK(std::equal(out.at[t], out.at[t] + n_out, out1.at[t]));
    }
}

// Every finite F16 there is, smallest and largest included.
static void test_every_f16(const alora_kernels & kernels) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        if ((bits & 0x7c00) == 0x7c00) {
            continue;
        }
        std::vector<uint16_t> tile(ALORA_TILE, (uint16_t) bits);
        std::vector<float>    out(ALORA_TILE, 0.0f);
        const float           one = 1.0f;
        const float *         y   = &one;
        float *               o   = out.data();
        kernels.expand(GGML_TYPE_F16, { tile.data(), 1, ALORA_TILE, 1, &y, &o });
        CHECK(out[0] == value_of_f16((uint16_t) bits) && out[63] == out[0]);
    }
}

int main() {
    for (const alora_kernels * kernels : alora_kernels_all()) {
        std::printf("%s\n", kernels->name);
        for (const ggml_type type :
                { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_F32, GGML_TYPE_Q8_0 }) {
            for (int i = 0; i < 150; ++i) {
                test_shrink(*kernels, type);
                test_expand(*kernels, type);
            }
            test_tokens_are_computed_alike(*kernels, type);
        }
        test_every_f16(*kernels);
    }
    return 0;
}
