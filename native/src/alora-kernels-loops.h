// The loops of alora-kernels.h, written once over a vector type V. Each file that includes this is
// compiled for its own instruction set, so everything here has internal linkage: the linker must
// never replace one file's copy of a function by another's.
//
// V has N lanes, vec, zero(), set1(float), load(const E *), store(float *, vec), add(vec, vec),
// fma(a, b, c) = a*b + c and sum(vec), and says how much fits into its registers:
//   SHRINK_TOKENS    tokens beside four rows of A
//   EXPAND_ONE_WIDTH     vectors of a tile for one token; a divisor of 64/N, as is
//   EXPAND_WIDTH    vectors of a tile beside
//   EXPAND_TOKENS   that many tokens
#pragma once

#include "alora-kernels.h"

#include <cstring>

namespace {

struct f16 {
    uint16_t bits;
};

struct bf16 {
    uint16_t bits;
};

// The exponent's bias is mended by a multiplication, which is exact.
inline float to_float(f16 value) {
    const uint32_t magnitude = (uint32_t) (value.bits & 0x7fff) << 13;
    const uint32_t sign      = (uint32_t) (value.bits & 0x8000) << 16;
    const uint32_t infinite  = magnitude >= 0x0f800000 ? 0x7f800000 : 0;
    float          f;
    memcpy(&f, &magnitude, sizeof(f));
    f *= 0x1p112f;
    uint32_t bits;
    memcpy(&bits, &f, sizeof(f));
    bits |= sign | infinite;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

inline float to_float(bf16 value) {
    const uint32_t bits = (uint32_t) value.bits << 16;
    float          f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

inline float to_float(float value) {
    return value;
}

//
// y = scale * A x
//

// R rows from row `i` on, for T tokens from token `t0` on.
template <class V, class E, int R, int T>
inline void shrink_block(const alora_shrink & op, int64_t i, int64_t t0) {
    const E *       a = (const E *) op.a + i * op.n;
    const float *   x[T];
    typename V::vec acc[R][T];
    for (int t = 0; t < T; ++t) {
        x[t] = op.x[t0 + t];
        for (int r = 0; r < R; ++r) {
            acc[r][t] = V::zero();
        }
    }
    int64_t k = 0;
    for (; k + V::N <= op.n; k += V::N) {
        typename V::vec av[R];
        for (int r = 0; r < R; ++r) {
            av[r] = V::load(a + r * op.n + k);
        }
        for (int t = 0; t < T; ++t) {
            const typename V::vec xv = V::load(x[t] + k);
            for (int r = 0; r < R; ++r) {
                acc[r][t] = V::fma(av[r], xv, acc[r][t]);
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < R; ++r) {
            float sum = V::sum(acc[r][t]);
            for (int64_t rest = k; rest < op.n; ++rest) {
                sum += to_float(a[r * op.n + rest]) * x[t][rest];
            }
            op.y[t0 + t][i + r] = sum * op.scale[t0 + t];
        }
    }
}

// `n` tokens at once, n in [1, T].
template <class V, class E, int R, int T>
inline void shrink_tokens(const alora_shrink & op, int64_t i, int64_t t0, int64_t n) {
    if constexpr (T > 1) {
        if (n < T) {
            shrink_tokens<V, E, R, T - 1>(op, i, t0, n);
            return;
        }
    }
    shrink_block<V, E, R, T>(op, i, t0);
}

template <class V, class E, int R> inline void shrink_rows(const alora_shrink & op, int64_t i) {
    for (int64_t t = 0; t < op.n_tokens; t += V::SHRINK_TOKENS) {
        const int64_t left = op.n_tokens - t;
        shrink_tokens<V, E, R, V::SHRINK_TOKENS>(
                op, i, t, left < V::SHRINK_TOKENS ? left : V::SHRINK_TOKENS);
    }
}

template <class V, class E> void shrink_all(const alora_shrink & op) {
    int64_t i = 0;
    for (; i + 4 <= op.n_rows; i += 4) {
        shrink_rows<V, E, 4>(op, i);
    }
    for (; i < op.n_rows; ++i) {
        shrink_rows<V, E, 1>(op, i);
    }
}

template <class V> void shrink(ggml_type type, const alora_shrink & op) {
    switch (type) {
        case GGML_TYPE_F16:
            shrink_all<V, f16>(op);
            break;
        case GGML_TYPE_BF16:
            shrink_all<V, bf16>(op);
            break;
        default:
            shrink_all<V, float>(op);
            break;
    }
}

//
// out += B y
//

// W vectors of a tile for T tokens.
template <class V, class E, int W, int T>
inline void expand_block(
        const E * b, int64_t rank, const float * const * y, float * const * out, int64_t at) {
    typename V::vec acc[T][W];
    for (int t = 0; t < T; ++t) {
        for (int v = 0; v < W; ++v) {
            acc[t][v] = V::zero();
        }
    }
    for (int64_t j = 0; j < rank; ++j) {
        typename V::vec bv[W];
        for (int v = 0; v < W; ++v) {
            bv[v] = V::load(b + j * ALORA_TILE + v * V::N);
        }
        for (int t = 0; t < T; ++t) {
            const typename V::vec yv = V::set1(y[t][j]);
            for (int v = 0; v < W; ++v) {
                acc[t][v] = V::fma(bv[v], yv, acc[t][v]);
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int v = 0; v < W; ++v) {
            float * o = out[t] + at + v * V::N;
            V::store(o, V::add(V::load(o), acc[t][v]));
        }
    }
}

// A whole tile, W vectors at a time.
template <class V, class E, int W, int T>
inline void expand_tile(
        const E * b, int64_t rank, const float * const * y, float * const * out, int64_t at) {
    for (int64_t c = 0; c < ALORA_TILE; c += W * V::N) {
        expand_block<V, E, W, T>(b + c, rank, y, out, at + c);
    }
}

// `n` tokens at once, n in [1, T].
template <class V, class E, int T>
inline void expand_tokens(
        const E * b, int64_t rank, const float * const * y, float * const * out, int64_t at,
        int64_t n) {
    if constexpr (T > 1) {
        if (n == T) {
            expand_tile<V, E, V::EXPAND_WIDTH, T>(b, rank, y, out, at);
        } else {
            expand_tokens<V, E, T - 1>(b, rank, y, out, at, n);
        }
    } else {
        expand_tile<V, E, V::EXPAND_ONE_WIDTH, 1>(b, rank, y, out, at);
    }
}

// A tile for all tokens, in blocks of nearly equal size.
template <class V, class E>
inline void expand_blocks(
        const E * b, int64_t rank, const float * const * y, float * const * out, int64_t at,
        int64_t n) {
    int64_t n_blocks = (n + V::EXPAND_TOKENS - 1) / V::EXPAND_TOKENS;
    for (int64_t t = 0; t < n; --n_blocks) {
        const int64_t size = (n - t + n_blocks - 1) / n_blocks;
        expand_tokens<V, E, V::EXPAND_TOKENS>(b, rank, y + t, out + t, at, size);
        t += size;
    }
}

// The last tile, of which only the first `n_out` outputs exist: added aside, token by token.
template <class V, class E>
inline void expand_cut_tile(
        const E * b, int64_t rank, const alora_expand & op, int64_t at, int64_t n_out) {
    for (int64_t t = 0; t < op.n_tokens; ++t) {
        float   aside[ALORA_TILE] = {};
        float * out               = aside;
        memcpy(aside, op.out[t] + at, n_out * sizeof(float));
        expand_tile<V, E, V::EXPAND_ONE_WIDTH, 1>(b, rank, op.y + t, &out, 0);
        memcpy(op.out[t] + at, aside, n_out * sizeof(float));
    }
}

template <class V, class E> void expand_all(const alora_expand & op) {
    const E * b = (const E *) op.b;
    for (int64_t at = 0; at < op.n_out; at += ALORA_TILE, b += op.rank * ALORA_TILE) {
        if (op.n_out - at >= ALORA_TILE) {
            expand_blocks<V, E>(b, op.rank, op.y, op.out, at, op.n_tokens);
        } else {
            expand_cut_tile<V, E>(b, op.rank, op, at, op.n_out - at);
        }
    }
}

template <class V> void expand(ggml_type type, const alora_expand & op) {
    switch (type) {
        case GGML_TYPE_F16:
            expand_all<V, f16>(op);
            break;
        case GGML_TYPE_BF16:
            expand_all<V, bf16>(op);
            break;
        default:
            expand_all<V, float>(op);
            break;
    }
}

}  // namespace
