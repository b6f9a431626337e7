// Attention for many rows of queries (alora_attend), written once over a vector type V as the loops of
// alora-kernels-loops.h are. Rows lie in the lanes: a block of W = NV*N rows has its queries as
// [d_k][W], its scores as [keys][W] and its result as [d_v][W], so that cells of K and V are read as
// they lie, value by value, each for W rows, and a row's largest score needs no sum across lanes.
//
// Beside the above V has sub, mul, div, min and max(a, b) (b where either is NaN), round, pow2(p, n) =
// p * 2^n (0 for n < -126), hide(s, mask) = s + mask (-inf where the mask is, whatever s), load of
// int8_t, sum4(a, b, c, d, out), top(vec), the largest lane, and the constants
//   ATTEND_VECS   vectors in a block of rows at most
//   BESIDE        by vectors in a block: keys, or values of a cell, that are computed beside each
//                 other; divisors of 16
//   FEW_ROWS      up to this many rows, those of alora-attention-few.h are faster
#pragma once

#include "alora-kernels-loops.h"

#include <cmath>

// Loops over registers, which must not be left as loops.
#if defined(__clang__)
#define ALORA_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define ALORA_UNROLL _Pragma("GCC unroll 16")
#else
#define ALORA_UNROLL
#endif

namespace {

constexpr float LOG2E = 1.44269504088896341f;
constexpr float LOWEST =
        -1.5e38f;  // the largest score so far, before there is any; finite, so that
                   // differences are

// 2^x for x <= 127: to 1e-7, and 0 below -126.
template <class V> inline typename V::vec exp2(typename V::vec x) {
    x                       = V::max(V::set1(-127.0f), x);
    const typename V::vec n = V::round(x);
    const typename V::vec f = V::sub(x, n);
    typename V::vec       p = V::set1(1.535336188319500e-4f);
    p                       = V::fma(p, f, V::set1(1.339887440266574e-3f));
    p                       = V::fma(p, f, V::set1(9.618437357674640e-3f));
    p                       = V::fma(p, f, V::set1(5.550332471162809e-2f));
    p                       = V::fma(p, f, V::set1(2.402264791363012e-1f));
    p                       = V::fma(p, f, V::set1(6.931472028550421e-1f));
    p                       = V::fma(p, f, V::set1(1.0f));
    return V::pow2(p, n);
}

inline float exp2_scalar(float x) {
    return x < -126.0f ? 0.0f : std::exp2(x);
}

// cap * tanh(s / cap) for scores that are divided already, times what makes them powers of 2.
template <class V> inline typename V::vec capped(typename V::vec s, float cap) {
    s                         = V::min(V::set1(15.0f), s);
    const typename V::vec one = V::set1(1.0f);
    const typename V::vec e   = exp2<V>(V::mul(s, V::set1(2.0f * LOG2E)));
    return V::mul(V::div(V::sub(e, one), V::add(e, one)), V::set1(cap * LOG2E));
}

// What scores are multiplied by before a cap or, without one, to be powers of 2.
inline float score_scale(const alora_attend & w) {
    return w.soft_cap != 0.0f ? w.scale / w.soft_cap : w.scale * LOG2E;
}

//
// tiles of ALORA_KEYS cells
//

struct q8_0 {
    f16    scale;
    int8_t values[32];
};

template <class V, class E> inline void widen(const char * from, int64_t d, float * to) {
    for (int64_t i = 0; i < d; i += V::N) {
        V::store(to + i, V::load((const E *) from + i));
    }
}

template <class V> inline void widen_q8_0(const char * from, int64_t d, float * to) {
    const q8_0 * block = (const q8_0 *) from;
    for (int64_t i = 0; i < d; i += 32, ++block) {
        const typename V::vec scale = V::set1(to_float(block->scale));
        for (int64_t at = 0; at < 32; at += V::N) {
            V::store(to + i + at, V::mul(scale, V::load(block->values + at)));
        }
    }
}

// `n` cells from `first` on as rows of floats, and zeros for the rest of the tile.
template <class V>
inline void load_tile(const alora_attend::cells & c, int64_t first, int64_t n, float * to) {
    const char * from = c.data + first * c.stride;
    for (int64_t i = 0; i < n; ++i, from += c.stride, to += c.d) {
        switch (c.type) {
            case GGML_TYPE_F16:
                widen<V, f16>(from, c.d, to);
                break;
            case GGML_TYPE_BF16:
                widen<V, bf16>(from, c.d, to);
                break;
            case GGML_TYPE_Q8_0:
                widen_q8_0<V>(from, c.d, to);
                break;
            default:
                widen<V, float>(from, c.d, to);
                break;
        }
    }
    memset(to, 0, (ALORA_KEYS - n) * c.d * sizeof(float));
}

template <class V> inline bool all_finite(const float * tile, int64_t d) {
    typename V::vec sum = V::zero();
    for (int64_t i = 0; i < ALORA_KEYS * d; i += V::N) {
        sum = V::fma(V::load(tile + i), V::zero(), sum);
    }
    return V::sum(sum) == 0.0f;
}

// Asks for `n` cells that are needed soon, in the cache of the first or second level. Few at a time and
// amid other work: a processor waits for so many of them at most.
template <int LEVEL> inline void prefetch(const alora_attend::cells & c, int64_t first, int64_t n) {
#if defined(__GNUC__)
    const char *  from  = c.data + first * c.stride;
    const int64_t bytes = c.type == GGML_TYPE_F32 ? 4 * c.d : 2 * c.d;
    for (int64_t i = 0; i < n; ++i, from += c.stride) {
        for (int64_t at = 0; at < bytes; at += 64) {
            __builtin_prefetch(from + at, 0, LEVEL == 1 ? 3 : 2);
        }
    }
#else
    (void) c, (void) first, (void) n;
#endif
}

enum class sight { all, none, some };

// What a token sees of `n` keys, `n` > 0.
inline sight sight_of(const uint16_t * mask, int64_t n) {
    uint16_t any = 0, other = 0;
    for (int64_t i = 0; i < n; ++i) {
        any |= mask[i];
        other |= mask[i] ^ 0xfc00;  // -inf
    }
    return other == 0 ? sight::none : (any & 0x7fff) == 0 ? sight::all : sight::some;
}

// What each token sees of a tile, and what all of them do.
inline sight look(const alora_attend & w, int64_t key, int64_t n, sight * seen) {
    bool all = true, none = true;
    for (int64_t t = 0; t < w.n_tokens; ++t) {
        seen[t] = w.mask ? sight_of(w.mask[t] + key, n) : sight::all;
        all &= seen[t] == sight::all;
        none &= seen[t] == sight::none;
    }
    return all ? sight::all : none ? sight::none : sight::some;
}

//
// a block of rows
//

// The parts of a unit's result for a block of `width` rows: largest score, sum, values.
struct block_of_rows {
    float * m;  // [width]
    float * l;  // [width]
    float * o;  // [d_v][width]
};

// What a tile is to them.
struct block_bias {
    const float * bias    = nullptr;  // added to scores: [width] or, if by_key, [keys][width]
    bool          by_key  = false;
    bool          guarded = false;  // V holds infinity or NaN, perhaps where some row must not look
};

// s[key][row] = k[key]·q[row] for NK keys.
template <class V, int NV, int NK>
inline void scores(const float * q, const float * k, int64_t d, float * s) {
    typename V::vec acc[NK][NV];
    ALORA_UNROLL
    for (int j = 0; j < NK; ++j) {
        ALORA_UNROLL
        for (int v = 0; v < NV; ++v) {
            acc[j][v] = V::zero();
        }
    }
    for (int64_t i = 0; i < d; ++i) {
        typename V::vec qv[NV];
        ALORA_UNROLL
        for (int v = 0; v < NV; ++v) {
            qv[v] = V::load(q + i * NV * V::N + v * V::N);
        }
        ALORA_UNROLL
        for (int j = 0; j < NK; ++j) {
            const typename V::vec kv = V::set1(k[j * d + i]);
            ALORA_UNROLL
            for (int v = 0; v < NV; ++v) {
                acc[j][v] = V::fma(kv, qv[v], acc[j][v]);
            }
        }
    }
    ALORA_UNROLL
    for (int j = 0; j < NK; ++j) {
        ALORA_UNROLL
        for (int v = 0; v < NV; ++v) {
            V::store(s + (j * NV + v) * V::N, acc[j][v]);
        }
    }
}

// o[i][row] = o[i][row] * fade[row] + sum over the keys of p[key][row] * v[key][i] for ND values i.
template <class V, int NV, int ND>
inline void values(
        const float * p, const float * v, int64_t d, const typename V::vec * fade, float * o) {
    typename V::vec acc[ND][NV];
    ALORA_UNROLL
    for (int i = 0; i < ND; ++i) {
        ALORA_UNROLL
        for (int r = 0; r < NV; ++r) {
            acc[i][r] = V::mul(V::load(o + (i * NV + r) * V::N), fade[r]);
        }
    }
    for (int64_t key = 0; key < ALORA_KEYS; ++key) {
        typename V::vec pv[NV];
        ALORA_UNROLL
        for (int r = 0; r < NV; ++r) {
            pv[r] = V::load(p + (key * NV + r) * V::N);
        }
        ALORA_UNROLL
        for (int i = 0; i < ND; ++i) {
            const typename V::vec vv = V::set1(v[key * d + i]);
            ALORA_UNROLL
            for (int r = 0; r < NV; ++r) {
                acc[i][r] = V::fma(vv, pv[r], acc[i][r]);
            }
        }
    }
    ALORA_UNROLL
    for (int i = 0; i < ND; ++i) {
        ALORA_UNROLL
        for (int r = 0; r < NV; ++r) {
            V::store(o + (i * NV + r) * V::N, acc[i][r]);
        }
    }
}

// The same for all of a cell, and values with weight 0 count for nothing even if they are infinite.
inline void values_guarded(
        const float * p, const float * v, int64_t d, int64_t width, const float * fade, float * o) {
    for (int64_t i = 0; i < d; ++i) {
        for (int64_t r = 0; r < width; ++r) {
            float sum = o[i * width + r] * fade[r];
            for (int64_t key = 0; key < ALORA_KEYS; ++key) {
                const float weight = p[key * width + r];
                sum += weight == 0.0f ? 0.0f : weight * v[key * d + i];
            }
            o[i * width + r] = sum;
        }
    }
}

// Scores become weights; returns what the results so far are multiplied by. `bias` is added, one for
// all keys or, if `by_key`, each; null: nothing.
template <class V, int NV>
inline void weights(
        float * s, float cap, const float * bias, bool by_key, const block_of_rows & rows,
        typename V::vec * fade) {
    constexpr int   W = NV * V::N;
    typename V::vec m[NV], l[NV];
    ALORA_UNROLL
    for (int r = 0; r < NV; ++r) {
        m[r] = V::load(rows.m + r * V::N);
    }
    if (cap != 0.0f || bias) {
        for (int64_t key = 0; key < ALORA_KEYS; ++key) {
            ALORA_UNROLL
            for (int r = 0; r < NV; ++r) {
                float *         at = s + key * W + r * V::N;
                typename V::vec x  = V::load(at);
                if (cap != 0.0f) {
                    x = capped<V>(x, cap);
                }
                if (bias) {
                    x = V::hide(x, V::load(bias + (by_key ? key * W : 0) + r * V::N));
                }
                V::store(at, x);
            }
        }
    }
    for (int64_t key = 0; key < ALORA_KEYS; ++key) {
        ALORA_UNROLL
        for (int r = 0; r < NV; ++r) {
            m[r] = V::max(m[r], V::load(s + key * W + r * V::N));
        }
    }
    ALORA_UNROLL
    for (int r = 0; r < NV; ++r) {
        fade[r] = exp2<V>(V::sub(V::load(rows.m + r * V::N), m[r]));
        l[r]    = V::mul(V::load(rows.l + r * V::N), fade[r]);
    }
    for (int64_t key = 0; key < ALORA_KEYS; ++key) {
        ALORA_UNROLL
        for (int r = 0; r < NV; ++r) {
            float *               at = s + key * W + r * V::N;
            const typename V::vec p  = exp2<V>(V::sub(V::load(at), m[r]));
            l[r]                     = V::add(l[r], p);
            V::store(at, p);
        }
    }
    ALORA_UNROLL
    for (int r = 0; r < NV; ++r) {
        V::store(rows.m + r * V::N, m[r]);
        V::store(rows.l + r * V::N, l[r]);
    }
}

// One tile's keys for one block's rows; meanwhile, the tile at `next`, if any, is asked for. The first
// level is full of this one.
template <class V, int NV>
inline void attend_block(
        const alora_attend & w, const float * q, const float * k, const float * v, float * s,
        const block_bias & what, int64_t next, const block_of_rows & rows) {
    constexpr int W = NV * V::N;
    constexpr int B = V::BESIDE[NV];
    for (int64_t key = 0; key < ALORA_KEYS; key += B) {
        if (next > 0) {
            prefetch<2>(w.k, next + key, B);
        }
        scores<V, NV, B>(q, k + key * w.k.d, w.k.d, s + key * W);
    }
    typename V::vec fade[NV];
    weights<V, NV>(s, w.soft_cap, what.bias, what.by_key, rows, fade);
    if (what.guarded) {
        float each[W];
        for (int r = 0; r < NV; ++r) {
            V::store(each + r * V::N, fade[r]);
        }
        values_guarded(s, v, w.v.d, W, each, rows.o);
        return;
    }
    const int64_t share = ALORA_KEYS * B / w.v.d;
    for (int64_t i = 0, key = 0; i < w.v.d; i += B, key += share) {
        if (next > 0) {
            prefetch<2>(w.v, next + key, share);
        }
        values<V, NV, B>(s, v + i, w.v.d, fade, rows.o + i * W);
    }
}

template <class V, int NV>
inline void attend_block_of(
        int64_t n_vecs, const alora_attend & w, const float * q, const float * k, const float * v,
        float * s, const block_bias & what, int64_t next, const block_of_rows & rows) {
    if constexpr (NV > 1) {
        if (n_vecs < NV) {
            attend_block_of<V, NV - 1>(n_vecs, w, q, k, v, s, what, next, rows);
            return;
        }
    }
    attend_block<V, NV>(w, q, k, v, s, what, next, rows);
}

//
// all blocks
//

// Calls body(first row, vectors) for blocks of nearly equal size.
template <class V, class F> inline void for_blocks(int64_t n_rows, const F & body) {
    int64_t left     = (n_rows + V::N - 1) / V::N;
    int64_t n_blocks = (left + V::ATTEND_VECS - 1) / V::ATTEND_VECS;
    for (int64_t first = 0; n_blocks > 0; --n_blocks) {
        const int64_t n_vecs = (left + n_blocks - 1) / n_blocks;
        body(first, n_vecs);
        first += n_vecs * V::N;
        left -= n_vecs;
    }
}

inline block_of_rows block_at(float * partial, int64_t first, int64_t width, int64_t d_v) {
    float * at = partial + first * (d_v + 2);
    return { at, at + width, at + 2 * width };
}

// False if a block's rows see nothing of a tile.
inline bool bias_of(
        const alora_attend & w, const sight * seen, int64_t first, int64_t width, int64_t key,
        int64_t n_keys, float * room, block_bias & result) {
    const int64_t last =
            first + width < w.n_tokens * w.group ? first + width : w.n_tokens * w.group;
    bool none  = true;
    bool all   = n_keys == ALORA_KEYS;
    bool mixed = n_keys < ALORA_KEYS;
    for (int64_t t = first / w.group; t <= (last - 1) / w.group; ++t) {
        none &= seen[t] == sight::none;
        all &= seen[t] == sight::all;
        mixed |= seen[t] == sight::some;
    }
    result = {};
    if (none || all) {
        return !none;
    }
    result.bias   = room;
    result.by_key = mixed;
    if (!mixed) {
        for (int64_t r = 0; r < width; ++r) {
            const int64_t row = first + r;
            room[r]           = row < last && seen[row / w.group] == sight::none ? -INFINITY : 0.0f;
        }
        return true;
    }
    for (int64_t r = 0; r < width; ++r) {
        const int64_t    row   = first + r < last ? first + r : last - 1;
        const float      slope = (w.slope ? w.slope[row % w.group] : 1.0f) * LOG2E;
        const uint16_t * mask  = w.mask ? w.mask[row / w.group] + key : nullptr;
        for (int64_t i = 0; i < n_keys; ++i) {
            room[i * width + r] = mask ? to_float(f16{ mask[i] }) * slope : 0.0f;
        }
        for (int64_t i = n_keys; i < ALORA_KEYS; ++i) {
            room[i * width + r] = -INFINITY;
        }
    }
    return true;
}

// Queries of all blocks as [d_k][width], zeros in lanes without a row; results begin.
template <class V> inline void begin_blocks(const alora_attend & w, float * q) {
    const int64_t n_rows = w.n_tokens * w.group;
    const float   scale  = score_scale(w);
    for_blocks<V>(n_rows, [&](int64_t first, int64_t n_vecs) {
        const int64_t width = n_vecs * V::N;
        float *       to    = q + first * w.k.d;
        for (int64_t r = 0; r < width; ++r) {
            const float * from = first + r < n_rows ? w.q[first + r] : nullptr;
            for (int64_t i = 0; i < w.k.d; ++i) {
                to[i * width + r] = from ? from[i] * scale : 0.0f;
            }
        }
        const block_of_rows rows = block_at(w.partial, first, width, w.v.d);
        for (int64_t r = 0; r < width; ++r) {
            rows.m[r] = LOWEST;
        }
        memset(rows.l, 0, (1 + w.v.d) * width * sizeof(float));
    });
}

template <class V> inline void attend_many(const alora_attend & w) {
    float * s    = w.scratch;
    float * bias = s + ALORA_KEYS * 64;
    float * k    = bias + ALORA_KEYS * 64;
    float * v    = k + ALORA_KEYS * w.k.d;
    float * q    = v + ALORA_KEYS * w.v.d;
    begin_blocks<V>(w, q);

    sight seen[64];
    for (int64_t key = 0; key < w.n_keys; key += ALORA_KEYS) {
        const int64_t n    = w.n_keys - key < ALORA_KEYS ? w.n_keys - key : ALORA_KEYS;
        int64_t       next = key + 2 * ALORA_KEYS <= w.n_keys ? key + ALORA_KEYS : 0;
        const sight   most = look(w, key, n, seen);
        if (most == sight::none) {
            continue;
        }
        load_tile<V>(w.k, key, n, k);
        load_tile<V>(w.v, key, n, v);
        const bool finite = most == sight::all || all_finite<V>(v, w.v.d);
        for_blocks<V>(w.n_tokens * w.group, [&](int64_t first, int64_t n_vecs) {
            block_bias    what;
            const int64_t width = n_vecs * V::N;
            if (bias_of(w, seen, first, width, key, n, bias, what)) {
                what.guarded = !finite;
                attend_block_of<V, V::ATTEND_VECS>(
                        n_vecs, w, q + first * w.k.d, k, v, s, what, next,
                        block_at(w.partial, first, width, w.v.d));
                next = 0;
            }
        });
    }
}

// The runs' results as one: each fades by as much as its largest score is below the largest of all.
template <class V> inline void merge_block(const alora_merge & w, int64_t first, int64_t width) {
    const int64_t n   = w.n_rows - first < width ? w.n_rows - first : width;
    const auto    run = [&](int64_t i) {
        return block_at((float *) w.partial + i * w.stride, first, width, w.d);
    };
    float m[64], whole[64], lines[16 * 64];
    for (int64_t r = 0; r < width; ++r) {
        m[r]      = r < n && w.sink ? w.sink[first + r] * LOG2E : LOWEST;
        float top = m[r];
        for (int64_t i = 0; i < w.n; ++i) {
            const float other = run(i).m[r];
            top               = top > other ? top : other;
        }
        float sum = r < n && w.sink ? exp2_scalar(m[r] - top) : 0.0f;
        for (int64_t i = 0; i < w.n; ++i) {
            sum += run(i).l[r] * exp2_scalar(run(i).m[r] - top);
        }
        m[r]     = top;
        whole[r] = sum == 0.0f ? 0.0f : 1.0f / sum;
    }
    for (int64_t i = 0; i < w.n; ++i) {  // its part, in place of its sum
        for (int64_t r = 0; r < width; ++r) {
            run(i).l[r] = exp2_scalar(run(i).m[r] - m[r]) * whole[r];
        }
    }
    // 16 values of all rows at a time, which make a cache line of each row
    for (int64_t at = 0; at < w.d; at += 16) {
        for (int64_t r = 0; r < 16 * width; r += V::N) {
            typename V::vec sum = V::zero();
            for (int64_t i = 0; i < w.n; ++i) {
                const block_of_rows rows = run(i);
                sum = V::fma(V::load(rows.o + at * width + r), V::load(rows.l + r % width), sum);
            }
            V::store(lines + r, sum);
        }
        for (int64_t r = 0; r < n; ++r) {
            for (int64_t i = 0; i < 16; ++i) {
                w.out[first + r][at + i] = lines[i * width + r];
            }
        }
    }
}

template <class V> inline void merge_many(const alora_merge & w) {
    for_blocks<V>(w.n_rows, [&](int64_t first, int64_t n_vecs) {
        merge_block<V>(w, first, n_vecs * V::N);
    });
}

}  // namespace
