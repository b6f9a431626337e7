// The loops of alora-kernels.h, written once over a vector type V. Each file that includes this is
// compiled for its own instruction set, so everything here has internal linkage: the linker must
// never replace one file's copy of a function by another's.
//
// V has N lanes, vec, zero(), set1(float), load(const E *) of floats, f16, bf16 and int8_t,
// store(float *, vec), add(vec, vec), mul(vec, vec), fma(a, b, c) = a*b + c and sum(vec), and says how
// much fits into its registers:
//   SHRINK_TOKENS    tokens beside four rows of A
//   EXPAND_ONE_WIDTH     vectors of a tile for one token; a divisor of 64/N, as is
//   EXPAND_WIDTH    vectors of a tile beside
//   EXPAND_TOKENS   that many tokens
#pragma once

#include "alora-kernels.h"

#include <cstring>
#include <type_traits>

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

// A block of Q8_0, as ggml has it.
struct q8_0 {
    f16    scale;
    int8_t value[ALORA_BLOCK];
};
static_assert(sizeof(q8_0) == 34, "ggml's block");

template <class E> constexpr bool is_q8_0 = std::is_same<E, q8_0>::value;

// What a tile of B is made of.
template <class E> using in_tile = std::conditional_t<is_q8_0<E>, alora_tile_group, E>;

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

// The same of Q8_0. A block's sum is multiplied with its scale, not each of its values.
template <class V, int R, int T>
inline void shrink_block_q8_0(const alora_shrink & op, int64_t i, int64_t t0) {
    const float *   scale[R];
    const int8_t *  value[R];
    const float *   x[T];
    typename V::vec acc[R][T];
    for (int r = 0; r < R; ++r) {
        scale[r] = (const float *) ((const char *) op.a +
                                    (i + r) * alora_row_size(GGML_TYPE_Q8_0, op.n));
        value[r] = (const int8_t *) (scale[r] + op.n / ALORA_BLOCK);
    }
    for (int t = 0; t < T; ++t) {
        x[t] = op.x[t0 + t];
        for (int r = 0; r < R; ++r) {
            acc[r][t] = V::zero();
        }
    }
    for (int64_t k = 0; k < op.n; k += ALORA_BLOCK) {
        typename V::vec block[R][T];
        for (int64_t at = 0; at < ALORA_BLOCK; at += V::N) {
            typename V::vec av[R];
            for (int r = 0; r < R; ++r) {
                av[r] = V::load(value[r] + k + at);
            }
            for (int t = 0; t < T; ++t) {
                const typename V::vec xv = V::load(x[t] + k + at);
                for (int r = 0; r < R; ++r) {
                    block[r][t] = at == 0 ? V::mul(av[r], xv) : V::fma(av[r], xv, block[r][t]);
                }
            }
        }
        for (int r = 0; r < R; ++r) {
            const typename V::vec s = V::set1(scale[r][k / ALORA_BLOCK]);
            for (int t = 0; t < T; ++t) {
                acc[r][t] = V::fma(s, block[r][t], acc[r][t]);
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < R; ++r) {
            op.y[t0 + t][i + r] = V::sum(acc[r][t]) * op.scale[t0 + t];
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
    if constexpr (is_q8_0<E>) {
        shrink_block_q8_0<V, R, T>(op, i, t0);
    } else {
        shrink_block<V, E, R, T>(op, i, t0);
    }
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
    if (is_q8_0<E> && op.n_tokens > 1) {  // whose blocks' sums take as many registers as all sums
        for (; i + 2 <= op.n_rows; i += 2) {
            shrink_rows<V, E, 2>(op, i);
        }
    }
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
        case GGML_TYPE_Q8_0:
            shrink_all<V, q8_0>(op);
            break;
        default:
            shrink_all<V, float>(op);
            break;
    }
}

//
// out += B y
//

// W vectors of a tile from its output `c` on, for T tokens.
template <class V, class E, int W, int T>
inline void expand_block(
        const E * b, int64_t rank, int64_t c, const float * const * y, float * const * out,
        int64_t at) {
    typename V::vec acc[T][W];
    for (int t = 0; t < T; ++t) {
        for (int v = 0; v < W; ++v) {
            acc[t][v] = V::zero();
        }
    }
    for (int64_t j = 0; j < rank; ++j) {
        typename V::vec bv[W];
        for (int v = 0; v < W; ++v) {
            bv[v] = V::load(b + j * ALORA_TILE + c + v * V::N);
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
            float * o = out[t] + at + c + v * V::N;
            V::store(o, V::add(V::load(o), acc[t][v]));
        }
    }
}

// The same of Q8_0: what a group adds is multiplied with its scales, not each of its values.
template <class V, class E, int W, int T>
inline void expand_block(
        const alora_tile_group * b, int64_t rank, int64_t c, const float * const * y,
        float * const * out, int64_t at) {
    for (int64_t first = 0; first < rank; first += ALORA_BLOCK, ++b) {
        typename V::vec acc[T][W];
        for (int t = 0; t < T; ++t) {
            for (int v = 0; v < W; ++v) {
                acc[t][v] = V::zero();
            }
        }
        for (int64_t j = 0; j < ALORA_BLOCK; ++j) {
            typename V::vec bv[W];
            for (int v = 0; v < W; ++v) {
                bv[v] = V::load(b->value[j] + c + v * V::N);
            }
            for (int t = 0; t < T; ++t) {
                const typename V::vec yv = V::set1(y[t][first + j]);
                for (int v = 0; v < W; ++v) {
                    acc[t][v] = V::fma(bv[v], yv, acc[t][v]);
                }
            }
        }
        for (int v = 0; v < W; ++v) {
            const typename V::vec scale = V::load((const f16 *) b->scale + c + v * V::N);
            for (int t = 0; t < T; ++t) {
                float * o = out[t] + at + c + v * V::N;
                V::store(o, V::fma(scale, acc[t][v], V::load(o)));
            }
        }
    }
}

// A whole tile, W vectors at a time.
template <class V, class E, int W, int T>
inline void expand_tile(
        const void * tile, int64_t rank, const float * const * y, float * const * out, int64_t at) {
    for (int64_t c = 0; c < ALORA_TILE; c += W * V::N) {
        expand_block<V, E, W, T>((const in_tile<E> *) tile, rank, c, y, out, at);
    }
}

// `n` tokens at once, n in [1, T].
template <class V, class E, int T>
inline void expand_tokens(
        const void * tile, int64_t rank, const float * const * y, float * const * out, int64_t at,
        int64_t n) {
    if constexpr (T > 1) {
        if (n == T) {
            expand_tile<V, E, V::EXPAND_WIDTH, T>(tile, rank, y, out, at);
        } else {
            expand_tokens<V, E, T - 1>(tile, rank, y, out, at, n);
        }
    } else {
        expand_tile<V, E, V::EXPAND_ONE_WIDTH, 1>(tile, rank, y, out, at);
    }
}

// A tile for all tokens, in blocks of nearly equal size.
template <class V, class E>
inline void expand_blocks(
        const void * tile, int64_t rank, const float * const * y, float * const * out, int64_t at,
        int64_t n) {
    int64_t n_blocks = (n + V::EXPAND_TOKENS - 1) / V::EXPAND_TOKENS;
    for (int64_t t = 0; t < n; --n_blocks) {
        const int64_t size = (n - t + n_blocks - 1) / n_blocks;
        expand_tokens<V, E, V::EXPAND_TOKENS>(tile, rank, y + t, out + t, at, size);
        t += size;
    }
}

// The last tile, of which only the first `n_out` outputs exist: added aside, token by token.
template <class V, class E>
inline void expand_cut_tile(
        const void * tile, int64_t rank, const alora_expand & op, int64_t at, int64_t n_out) {
    for (int64_t t = 0; t < op.n_tokens; ++t) {
        float   aside[ALORA_TILE] = {};
        float * out               = aside;
        memcpy(aside, op.out[t] + at, n_out * sizeof(float));
        expand_tile<V, E, V::EXPAND_ONE_WIDTH, 1>(tile, rank, op.y + t, &out, 0);
        memcpy(op.out[t] + at, aside, n_out * sizeof(float));
    }
}

template <class V, class E> void expand_all(ggml_type type, const alora_expand & op) {
    const char * tile = (const char *) op.b;
    for (int64_t at = 0; at < op.n_out; at += ALORA_TILE, tile += alora_tile_size(type, op.rank)) {
        if (op.n_out - at >= ALORA_TILE) {
            expand_blocks<V, E>(tile, op.rank, op.y, op.out, at, op.n_tokens);
        } else {
            expand_cut_tile<V, E>(tile, op.rank, op, at, op.n_out - at);
        }
    }
}

template <class V> void expand(ggml_type type, const alora_expand & op) {
    switch (type) {
        case GGML_TYPE_F16:
            expand_all<V, f16>(GGML_TYPE_F16, op);
            break;
        case GGML_TYPE_BF16:
            expand_all<V, bf16>(GGML_TYPE_BF16, op);
            break;
        case GGML_TYPE_Q8_0:
            expand_all<V, q8_0>(GGML_TYPE_Q8_0, op);
            break;
        default:
            expand_all<V, float>(GGML_TYPE_F32, op);
            break;
    }
}

}  // namespace
