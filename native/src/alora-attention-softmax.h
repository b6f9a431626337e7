// The softmax of attention, written once over a vector type V for both layouts of the scores: one row
// in each lane (lane-major, many rows) or the keys of one row in the lanes (row-major, few rows). A
// split of the keys keeps each row's largest score m, the sum l of its weights 2^(s - m) and the sum o
// of the values times these; splits are combined by the differences of their m.
//
// Beside what alora-kernels-loops.h asks for V has sub, mul, div, min and max(a, b) (b where either is
// NaN), round, pow2(p, n) = p * 2^n (0 for n < -126) and hide(s, mask) = s + mask (-inf where the mask
// is, whatever s).
#pragma once

#include "alora-kernels-loops.h"

#include <math.h>

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

// The largest score before there is any; finite, so that differences are.
constexpr float LOWEST = -1.5e38f;

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

// exp2f and not std::exp2: an inline function of the C++ library could be merged with a copy that
// was compiled for another instruction set.
inline float exp2_scalar(float x) {
    return x < -126.0f ? 0.0f : exp2f(x);
}

// cap * tanh(s / cap) for scores that are divided already, times what makes them powers of 2.
template <class V> inline typename V::vec capped(typename V::vec s, float cap) {
    s                         = V::min(V::set1(15.0f), s);
    const typename V::vec one = V::set1(1.0f);
    const typename V::vec e   = exp2<V>(V::mul(s, V::set1(2.0f * LOG2E)));
    return V::mul(V::div(V::sub(e, one), V::add(e, one)), V::set1(cap * LOG2E));
}

// What scores are multiplied by before a cap or, without one, to be powers of 2.
inline float score_scale(const alora_attend & op) {
    return op.soft_cap != 0.0f ? op.scale / op.soft_cap : op.scale * LOG2E;
}

//
// a tile's scores
//

// Caps `steps` times NV vectors of scores, adds `bias` and raises `m` to the largest of each lane.
// `bias`: vectors of a step as far apart as `bias_step` says, 0: the same for all; null: nothing.
template <class V, int NV>
inline void largest_scores(
        float * s, int64_t steps, float cap, const float * bias, int64_t bias_step,
        typename V::vec * m) {
    constexpr int W = NV * V::N;
    if (cap != 0.0f || bias) {
        for (int64_t i = 0; i < steps; ++i) {
            ALORA_UNROLL
            for (int r = 0; r < NV; ++r) {
                float *         at = s + i * W + r * V::N;
                typename V::vec x  = V::load(at);
                if (cap != 0.0f) {
                    x = capped<V>(x, cap);
                }
                if (bias) {
                    x = V::hide(x, V::load(bias + i * bias_step + r * V::N));
                }
                V::store(at, x);
            }
        }
    }
    for (int64_t i = 0; i < steps; ++i) {
        ALORA_UNROLL
        for (int r = 0; r < NV; ++r) {
            m[r] = V::max(m[r], V::load(s + i * W + r * V::N));
        }
    }
}

// Scores become weights, whose sums are added to `l`.
template <class V, int NV>
inline void weights(float * s, int64_t steps, const typename V::vec * m, typename V::vec * l) {
    constexpr int W = NV * V::N;
    for (int64_t i = 0; i < steps; ++i) {
        ALORA_UNROLL
        for (int r = 0; r < NV; ++r) {
            float *               at = s + i * W + r * V::N;
            const typename V::vec p  = exp2<V>(V::sub(V::load(at), m[r]));
            l[r]                     = V::add(l[r], p);
            V::store(at, p);
        }
    }
}

// Distances in an array of floats: from a row to the next, and from a key or a value to the next.
struct strides {
    int64_t row;
    int64_t step;
};

// o = o * rescale + sum over the keys of p * v where V's tile holds infinity or NaN, perhaps in cells
// that some row must not see: what has a weight of 0 counts for nothing.
inline void values_guarded(
        const float * p, strides of_p, const float * v, int64_t n_keys, int64_t d, int64_t n_rows,
        const float * rescale, float * o, strides of_o) {
    for (int64_t i = 0; i < d; ++i) {
        for (int64_t r = 0; r < n_rows; ++r) {
            float * at  = o + i * of_o.step + r * of_o.row;
            float   sum = *at * rescale[r];
            for (int64_t key = 0; key < n_keys; ++key) {
                const float weight = p[key * of_p.step + r * of_p.row];
                sum += weight == 0.0f ? 0.0f : weight * v[key * d + i];
            }
            *at = sum;
        }
    }
}

//
// a split's result
//

// Those of `width` rows.
struct split_rows {
    float * m;  // [width]
    float * l;  // [width]
    float * o;  // [d_v][width] lane-major, [width][d_v] row-major
};

inline split_rows split_rows_at(float * partial, int64_t first, int64_t width, int64_t d_v) {
    float * at = partial + first * (d_v + 2);
    return { at, at + width, at + 2 * width };
}

inline void begin_rows(const split_rows & rows, int64_t width, int64_t d_v) {
    for (int64_t r = 0; r < width; ++r) {
        rows.m[r] = LOWEST;
    }
    memset(rows.l, 0, (1 + d_v) * width * sizeof(float));
}

inline split_rows split_rows_of(
        const alora_splits & op, int64_t split, int64_t first, int64_t width) {
    return split_rows_at(op.partial + split * op.stride, first, width, op.d);
}

// What each split's values count for in the result, in place of its l: less by as much as its largest
// score is below the largest of all.
inline void combine_factors(const alora_splits & op, int64_t first, int64_t width) {
    for (int64_t r = 0; r < width; ++r) {
        const bool  has_sink = op.sink && first + r < op.n_rows;
        const float sink     = has_sink ? op.sink[first + r] * LOG2E : LOWEST;
        float       top      = sink;
        for (int64_t i = 0; i < op.n_splits; ++i) {
            const float other = split_rows_of(op, i, first, width).m[r];
            top               = top > other ? top : other;
        }
        float sum = has_sink ? exp2_scalar(sink - top) : 0.0f;
        for (int64_t i = 0; i < op.n_splits; ++i) {
            const split_rows rows   = split_rows_of(op, i, first, width);
            const float      factor = exp2_scalar(rows.m[r] - top);
            sum += rows.l[r] * factor;
            rows.l[r] = factor;
        }
        const float whole = sum == 0.0f ? 0.0f : 1.0f / sum;
        for (int64_t i = 0; i < op.n_splits; ++i) {
            split_rows_of(op, i, first, width).l[r] *= whole;
        }
    }
}

}  // namespace
