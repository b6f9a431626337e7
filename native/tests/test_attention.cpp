// Every set of loops that this processor runs against attention in float64, over random shapes, types
// and masks. Buffers end where the data ends, for the address sanitizer. Links nothing of ggml, so
// that it can be built for another processor and run under emulation.
#include "alora-kernels.h"
#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

static std::mt19937 rng(11);

static int64_t below(int64_t n) {
    return (int64_t) (rng() % (uint64_t) n);
}

static float noise() {
    return (float) ((int64_t) (rng() % 4001) - 2000) / 1000.0f;
}

static constexpr uint16_t F16_NONE = 0xfc00;  // -inf

static float value_of_f16(uint16_t bits) {
    const int exponent = (bits >> 10) & 0x1f;
    const int mantissa = bits & 0x3ff;
    float     value    = exponent == 0 ? std::ldexp((float) mantissa, -24)
                                       : std::ldexp((float) (1024 + mantissa), exponent - 25);
    if (exponent == 31) {
        value = mantissa ? NAN : INFINITY;
    }
    return bits & 0x8000 ? -value : value;
}

// The nearest F16 of a number of ordinary size.
static uint16_t f16_of(float value) {
    if (value == 0.0f) {
        return 0;
    }
    int         exponent = 0;
    const float part     = std::frexp(std::fabs(value), &exponent);  // in [0.5, 1)
    const int   bits     = (int) std::lround(std::ldexp(part, 11)) + ((exponent + 13) << 10);
    return (uint16_t) (bits | (value < 0.0f ? 0x8000 : 0));
}

// Cells of one head among `heads`, in a type, and their values.
struct cache {
    alora_attend::cells        cells;
    std::unique_ptr<uint8_t[]> bytes;
    std::vector<float>         values;  // [n][d]

    cache(ggml_type type, int64_t n, int64_t d) {
        const size_t  size  = type == GGML_TYPE_F32    ? 4 * d
                              : type == GGML_TYPE_Q8_0 ? 34 * d / 32
                                                       : 2 * d;
        const int64_t heads = 1 + below(3), head = below(heads);
        cells.stride       = size * heads;
        cells.type         = type;
        cells.d            = d;
        const size_t total = cells.stride * (n - 1) + size * (head + 1);
        bytes.reset(new uint8_t[total]);
        cells.data = (const char *) bytes.get() + head * size;
        values.resize(n * d);
        for (int64_t i = 0; i < n; ++i) {
            fill((char *) bytes.get() + head * size + i * cells.stride, values.data() + i * d);
        }
    }

    void fill(char * to, float * value) {
        for (int64_t j = 0; j < cells.d; ++j) {
            value[j] = noise();
        }
        if (cells.type == GGML_TYPE_Q8_0) {
            for (int64_t j = 0; j < cells.d; ++j, ++to) {
                const uint16_t scale = (uint16_t) (0x2000 + below(0x400));
                if (j % 32 == 0) {
                    memcpy(to, &scale, 2);
                    to += 2;
                }
                uint16_t used;
                memcpy(&used, to - 2 - j % 32, 2);
                const int8_t q = (int8_t) (below(255) - 127);
                memcpy(to, &q, 1);
                value[j] = value_of_f16(used) * q;
            }
            return;
        }
        for (int64_t j = 0; j < cells.d; ++j) {
            set(to, j, value[j]);
            uint16_t bits;
            if (cells.type == GGML_TYPE_F16) {
                memcpy(&bits, to + 2 * j, 2);
                value[j] = value_of_f16(bits);
            } else if (cells.type == GGML_TYPE_BF16) {
                uint32_t wide;
                memcpy(&wide, &value[j], 4);
                wide &= 0xffff0000;
                memcpy(&value[j], &wide, 4);
            }
        }
    }

    void set(char * cell, int64_t j, float value) {
        uint32_t wide;
        memcpy(&wide, &value, 4);
        const uint16_t half = cells.type == GGML_TYPE_F16 ? f16_of(value) : (uint16_t) (wide >> 16);
        if (cells.type == GGML_TYPE_F32) {
            memcpy(cell + 4 * j, &value, 4);
        } else {
            memcpy(cell + 2 * j, &half, 2);
        }
    }
};

struct problem {
    int64_t d_k, d_v, n_keys, n_tokens, group, n_rows;
    float   scale = 0.1f, cap = 0.0f;

    std::vector<std::unique_ptr<float[]>>    q;
    std::vector<std::unique_ptr<uint16_t[]>> mask;
    std::vector<float>                       slope, sink;

    problem(int64_t d_k, int64_t d_v, int64_t n_keys, int64_t n_tokens, int64_t group) :
        d_k(d_k),
        d_v(d_v),
        n_keys(n_keys),
        n_tokens(n_tokens),
        group(group),
        n_rows(n_tokens * group) {
        for (int64_t r = 0; r < n_rows; ++r) {
            q.emplace_back(new float[d_k]);
            std::generate(q.back().get(), q.back().get() + d_k, noise);
        }
    }

    // A prefix that all see, then cells of one fork each, holes, a window, or a row that sees nothing.
    void add_mask() {
        const int64_t shared = below(n_keys + 1), window = below(2) ? 1 + below(n_keys) : n_keys;
        const int64_t n_forks = 1 + below(4), kind = below(5);
        for (int64_t t = 0; t < n_tokens; ++t) {
            mask.emplace_back(new uint16_t[n_keys]);
            const bool blind = kind == 4 && below(3) == 0;
            for (int64_t i = 0; i < n_keys; ++i) {
                bool sees = i < shared || i % n_forks == t % n_forks;
                sees &= kind != 1 || below(8) != 0;
                sees &= kind != 2 || i + window > n_keys - n_tokens + t;
                sees &= kind != 3 || i <= n_keys - n_tokens + t;
                const float distance = slope.empty() ? 0.0f : (float) (i - n_keys) / 8.0f;
                mask.back()[i]       = sees && !blind ? f16_of(distance) : F16_NONE;
            }
        }
    }
};

using result = std::vector<std::vector<float>>;

static result run(
        const alora_kernels & kernels, const problem & p, const cache & k, const cache & v,
        int64_t step) {
    const int64_t            n_splits = (p.n_keys + step - 1) / step;
    const int64_t            size     = alora_partial_size(p.n_rows, p.d_v);
    std::unique_ptr<float[]> partial(new float[n_splits * size]);
    std::unique_ptr<float[]> scratch(new float[alora_scratch_size(p.n_rows, p.d_k, p.d_v)]);

    result               out(p.n_rows, std::vector<float>(p.d_v));
    std::vector<float *> rows;
    for (auto & row : out) {
        rows.push_back(row.data());
    }
    std::vector<const float *> q;
    for (const auto & row : p.q) {
        q.push_back(row.get());
    }
    for (int64_t first = 0; first < p.n_keys; first += step) {
        std::vector<const uint16_t *> mask;
        for (const auto & row : p.mask) {
            mask.push_back(row.get() + first);
        }
        alora_attend::cells kc = k.cells, vc = v.cells;
        kc.data += first * kc.stride;
        vc.data += first * vc.stride;
        kernels.attend(
                { kc, vc, std::min(step, p.n_keys - first), p.n_tokens, p.group, q.data(),
                        mask.empty() ? nullptr : mask.data(),
                        p.slope.empty() ? nullptr : p.slope.data(), p.scale, p.cap, scratch.get(),
                        partial.get() + first / step * size });
    }
    kernels.combine(
            { partial.get(), n_splits, p.n_rows, p.d_v, p.sink.empty() ? nullptr : p.sink.data(),
                    rows.data(), size });
    return out;
}

static void compare(const problem & p, const cache & k, const cache & v, const result & found) {
    for (int64_t r = 0; r < p.n_rows; ++r) {
        std::vector<double> score(p.n_keys, -INFINITY);
        double              top = p.sink.empty() ? -INFINITY : p.sink[r];
        for (int64_t i = 0; i < p.n_keys; ++i) {
            const double bias = p.mask.empty() ? 0.0 : value_of_f16(p.mask[r / p.group][i]);
            if (bias == -INFINITY) {
                continue;
            }
            double s = 0.0;
            for (int64_t j = 0; j < p.d_k; ++j) {
                s += (double) k.values[i * p.d_k + j] * p.q[r][j];
            }
            s *= p.scale;
            s        = p.cap == 0.0f ? s : p.cap * std::tanh(s / p.cap);
            score[i] = s + bias * (p.slope.empty() ? 1.0 : p.slope[r % p.group]);
            top      = std::max(top, score[i]);
        }
        double              sum  = p.sink.empty() ? 0.0 : std::exp(p.sink[r] - top);
        double              size = 0.0;
        std::vector<double> expected(p.d_v, 0.0);
        for (int64_t i = 0; i < p.n_keys; ++i) {
            const double weight = score[i] == -INFINITY ? 0.0 : std::exp(score[i] - top);
            sum += weight;
            for (int64_t j = 0; j < p.d_v && weight > 0.0; ++j) {
                expected[j] += weight * v.values[i * p.d_v + j];
                size = std::max(size, std::fabs((double) v.values[i * p.d_v + j]));
            }
        }
        for (int64_t j = 0; j < p.d_v; ++j) {
            const double value = sum == 0.0 ? 0.0 : expected[j] / sum;
            CHECK(std::fabs(found[r][j] - value) <= 1e-5 * size);
        }
    }
}

// Few rows are computed in another layout than many: what comes of one alone and of the same among
// others differs by the order of additions in F32.
static void test_alone(const alora_kernels & kernels) {
    const int64_t d = 16 * (1 + below(16)), n_keys = 1 + below(400), n_tokens = 2 + below(20);
    const cache   k(GGML_TYPE_F16, n_keys, d), v(GGML_TYPE_F16, n_keys, d);
    problem       all(d, d, n_keys, n_tokens, 1 + below(4));
    all.add_mask();
    const result together = run(kernels, all, k, v, n_keys);
    for (int64_t t = 0; t < n_tokens; ++t) {
        problem one(d, d, n_keys, 1, all.group);
        for (int64_t r = 0; r < all.group; ++r) {
            std::copy_n(all.q[t * all.group + r].get(), d, one.q[r].get());
        }
        one.mask.emplace_back(new uint16_t[n_keys]);
        std::copy_n(all.mask[t].get(), n_keys, one.mask[0].get());
        const result alone = run(kernels, one, k, v, n_keys);
        for (int64_t r = 0; r < all.group; ++r) {
            for (int64_t i = 0; i < d; ++i) {
                const float difference = alone[r][i] - together[t * all.group + r][i];
                CHECK(std::fabs(difference) <= 4e-6f);  // of values up to 2
            }
        }
    }
}

static const ggml_type TYPES[] = { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_F32, GGML_TYPE_Q8_0 };

static int64_t head_size(ggml_type type) {
    const int64_t step = type == GGML_TYPE_Q8_0 ? 32 : 16;
    return step * (1 + below(256 / step));
}

static void test_random(const alora_kernels & kernels) {
    const ggml_type type_k = TYPES[below(4)], type_v = below(2) ? type_k : TYPES[below(4)];
    const int64_t   n_tokens = 1 + below(below(2) ? 4 : 24), group = 1 + below(below(2) ? 2 : 9);
    problem         p(head_size(type_k), head_size(type_v), 1 + below(300), n_tokens, group);
    p.scale = 2.0f / std::sqrt((float) p.d_k) * (type_k == GGML_TYPE_Q8_0 ? 0.5f : 1.0f);
    p.cap   = below(3) ? 0.0f : 1.0f + below(50);
    if (below(4) == 0) {
        for (int64_t g = 0; g < group; ++g) {
            p.slope.push_back(std::ldexp(1.0f, (int) -g - 1));
        }
    }
    if (!p.slope.empty() || below(6)) {
        p.add_mask();
    }
    if (below(4) == 0) {
        for (int64_t r = 0; r < p.n_rows; ++r) {
            p.sink.push_back(4.0f * noise());
        }
    }
    const cache k(type_k, p.n_keys, p.d_k), v(type_v, p.n_keys, p.d_v);
    compare(p, k, v, run(kernels, p, k, v, below(2) ? p.n_keys : 64 * (1 + below(3))));
}

// What a row must not see does not reach it, whatever is in there.
static void test_hidden_cells(const alora_kernels & kernels, float what) {
    const int64_t n_tokens = 1 + below(9);
    problem       p(64, 64, 200, n_tokens, 1 + below(5));
    p.add_mask();
    cache             k(GGML_TYPE_F32, p.n_keys, p.d_k), v(GGML_TYPE_F32, p.n_keys, p.d_v);
    const result      before = run(kernels, p, k, v, p.n_keys);
    std::vector<bool> touched(p.n_keys);
    const int64_t     hidden_from = below(n_tokens);
    for (int64_t i = 0; i < p.n_keys; ++i) {
        if (p.mask[hidden_from][i] == F16_NONE) {
            k.set((char *) k.cells.data + i * k.cells.stride, below(64), what);
            v.set((char *) v.cells.data + i * v.cells.stride, below(64), what);
        }
    }
    const result after = run(kernels, p, k, v, p.n_keys);
    for (int64_t r = hidden_from * p.group; r < (hidden_from + 1) * p.group; ++r) {
        for (int64_t j = 0; j < p.d_v; ++j) {
            CHECK(std::fabs(after[r][j] - before[r][j]) < 1e-5);
        }
    }
}

// A score that is not a number makes a result that is none.
static void test_nan_is_seen(const alora_kernels & kernels) {
    for (const int64_t n_tokens : { 1, 20 }) {
        problem     p(64, 64, 128, n_tokens, 1);
        const cache k(GGML_TYPE_F16, p.n_keys, p.d_k), v(GGML_TYPE_F16, p.n_keys, p.d_v);
        p.q[0][3]          = NAN;
        const result found = run(kernels, p, k, v, 64);
        CHECK(std::isnan(found[0][0]));
        CHECK(n_tokens == 1 || std::isfinite(found[1][0]));
    }
}

int main() {
    for (const alora_kernels * kernels : alora_kernels_all()) {
        std::printf("%s\n", kernels->name);
        for (int i = 0; i < 400; ++i) {
            test_random(*kernels);
        }
        for (int i = 0; i < 20; ++i) {
            test_hidden_cells(*kernels, NAN);
            test_hidden_cells(*kernels, INFINITY);
            test_alone(*kernels);
        }
        test_nan_is_seen(*kernels);
    }
    return 0;
}
