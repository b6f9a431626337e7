// Attention for few rows of queries, where lanes full of rows would stay empty: here values of a cell
// lie in the lanes, and a row has its scores as [keys] and its result as [d_v]. Cells are read where
// they are and widened on the way. Constants of V:
//   FEW_AT_ONCE   rows beside each other, 4 keys or
//   FEW_WIDTH     vectors of a cell of V
//   ATTEND_FROM   alora_kernels::attend_rows
#pragma once

#include "alora-attention-loops.h"

namespace {

// A tile's cells, where they are or widened.
struct tile_rows {
    const char * data;
    size_t       stride;
};

// s[row][key] = q[row]·k[key] for R rows and 4 keys.
template <class V, class E, int R>
inline void few_scores(const float * q, const tile_rows & k, int64_t key, int64_t d, float * s) {
    const E *       from[4];
    typename V::vec acc[R][4];
    ALORA_UNROLL
    for (int j = 0; j < 4; ++j) {
        from[j] = (const E *) (k.data + (key + j) * k.stride);
        ALORA_UNROLL
        for (int r = 0; r < R; ++r) {
            acc[r][j] = V::zero();
        }
    }
    for (int64_t i = 0; i < d; i += V::N) {
        typename V::vec kv[4];
        ALORA_UNROLL
        for (int j = 0; j < 4; ++j) {
            kv[j] = V::load(from[j] + i);
        }
        ALORA_UNROLL
        for (int r = 0; r < R; ++r) {
            const typename V::vec qv = V::load(q + r * d + i);
            ALORA_UNROLL
            for (int j = 0; j < 4; ++j) {
                acc[r][j] = V::fma(kv[j], qv, acc[r][j]);
            }
        }
    }
    ALORA_UNROLL
    for (int r = 0; r < R; ++r) {
        V::sum4(acc[r][0], acc[r][1], acc[r][2], acc[r][3], s + r * ALORA_KEYS + key);
    }
}

// o[row] = o[row] * fade[row] + sum over the keys of p[row][key] * v[key], for R rows and W vectors.
template <class V, class E, int R, int W>
inline void few_values(
        const float * p, const tile_rows & v, int64_t at, int64_t d, const float * fade,
        float * o) {
    typename V::vec acc[R][W];
    ALORA_UNROLL
    for (int r = 0; r < R; ++r) {
        ALORA_UNROLL
        for (int i = 0; i < W; ++i) {
            acc[r][i] = V::mul(V::load(o + r * d + at + i * V::N), V::set1(fade[r]));
        }
    }
    for (int64_t key = 0; key < ALORA_KEYS; ++key) {
        const E *       from = (const E *) (v.data + key * v.stride) + at;
        typename V::vec vv[W];
        ALORA_UNROLL
        for (int i = 0; i < W; ++i) {
            vv[i] = V::load(from + i * V::N);
        }
        ALORA_UNROLL
        for (int r = 0; r < R; ++r) {
            const typename V::vec pv = V::set1(p[r * ALORA_KEYS + key]);
            ALORA_UNROLL
            for (int i = 0; i < W; ++i) {
                acc[r][i] = V::fma(vv[i], pv, acc[r][i]);
            }
        }
    }
    ALORA_UNROLL
    for (int r = 0; r < R; ++r) {
        ALORA_UNROLL
        for (int i = 0; i < W; ++i) {
            V::store(o + r * d + at + i * V::N, acc[r][i]);
        }
    }
}

template <class V, class E, int R, int W>
inline void few_values_all(
        const float * p, const tile_rows & v, int64_t at, int64_t d, const float * fade,
        float * o) {
    for (; at + W * V::N <= d; at += W * V::N) {
        few_values<V, E, R, W>(p, v, at, d, fade, o);
    }
    if constexpr (W > 1) {
        if (at < d) {
            few_values_all<V, E, R, W - 1>(p, v, at, d, fade, o);
        }
    }
}

inline void few_values_guarded(const float * p, const float * v, int64_t d, float fade, float * o) {
    for (int64_t i = 0; i < d; ++i) {
        o[i] *= fade;
    }
    for (int64_t key = 0; key < ALORA_KEYS; ++key) {
        for (int64_t i = 0; i < d && p[key] != 0.0f; ++i) {
            o[i] += p[key] * v[key * d + i];
        }
    }
}

// A row's scores become weights; returns what its result so far is multiplied by. `bias` is added
// to them; null: nothing.
template <class V>
inline float few_weights(float * s, float cap, const float * bias, float & top, float & sum) {
    typename V::vec m = V::set1(top);
    for (int64_t key = 0; key < ALORA_KEYS; key += V::N) {
        typename V::vec x = V::load(s + key);
        if (cap != 0.0f) {
            x = capped<V>(x, cap);
        }
        if (bias) {
            x = V::hide(x, V::load(bias + key));
        }
        V::store(s + key, x);
        m = V::max(m, x);
    }
    const float           fresh = V::top(m);
    const float           fade  = exp2_scalar(top - fresh);
    const typename V::vec mv    = V::set1(fresh);
    typename V::vec       l     = V::zero();
    for (int64_t key = 0; key < ALORA_KEYS; key += V::N) {
        const typename V::vec p = exp2<V>(V::sub(V::load(s + key), mv));
        V::store(s + key, p);
        l = V::add(l, p);
    }
    top = fresh;
    sum = sum * fade + V::sum(l);
    return fade;
}

struct few_rows {
    const float * q;  // [n][d_k], multiplied by score_scale()
    float *       m;  // [n]
    float *       l;  // [n]
    float *       o;  // [n][d_v]
};

// One tile for R rows from `first` on. `bias`: [row][keys], null for rows that need none.
template <class V, class EK, class EV, int R>
inline void attend_few(
        const alora_attend & w, const tile_rows & k, const tile_rows & v, float * s,
        const float * const * bias, const few_rows & rows, int64_t first, int64_t next,
        bool guarded) {
    for (int64_t key = 0; key < ALORA_KEYS; key += 4) {
        if (next > 0) {
            prefetch<1>(w.k, next + key, 4);
            prefetch<1>(w.v, next + key, 4);
        }
        few_scores<V, EK, R>(rows.q + first * w.k.d, k, key, w.k.d, s);
    }
    float fade[R];
    ALORA_UNROLL
    for (int r = 0; r < R; ++r) {
        fade[r] = few_weights<V>(
                s + r * ALORA_KEYS, w.soft_cap, bias[first + r], rows.m[first + r],
                rows.l[first + r]);
    }
    if (guarded) {
        for (int r = 0; r < R; ++r) {
            few_values_guarded(
                    s + r * ALORA_KEYS, (const float *) v.data, w.v.d, fade[r],
                    rows.o + (first + r) * w.v.d);
        }
        return;
    }
    few_values_all<V, EV, R, V::FEW_WIDTH>(s, v, 0, w.v.d, fade, rows.o + first * w.v.d);
}

template <class V, class E, int R>
inline void attend_few_of(
        int64_t n, const alora_attend & w, const tile_rows & k, const tile_rows & v, float * s,
        const float * const * bias, const few_rows & rows, int64_t first, int64_t next,
        bool guarded) {
    if constexpr (R > 1) {
        if (n < R) {
            attend_few_of<V, E, R - 1>(n, w, k, v, s, bias, rows, first, next, guarded);
            return;
        }
    }
    attend_few<V, E, E, R>(w, k, v, s, bias, rows, first, next, guarded);
}

template <class V, class E>
inline void attend_few_tile(
        const alora_attend & w, const tile_rows & k, const tile_rows & v, float * s,
        const float * const * bias, const few_rows & rows, int64_t next, bool guarded) {
    const int64_t n_rows = w.n_tokens * w.group;
    for (int64_t first = 0; first < n_rows; first += V::FEW_AT_ONCE) {
        const int64_t left = n_rows - first;
        attend_few_of<V, E, V::FEW_AT_ONCE>(
                left < V::FEW_AT_ONCE ? left : V::FEW_AT_ONCE, w, k, v, s, bias, rows, first, next,
                guarded);
        next = 0;
    }
}

// What a row adds to its scores in a tile; null: nothing.
inline const float * few_bias(
        const alora_attend & w, const sight * seen, int64_t row, int64_t key, int64_t n_keys,
        float * room) {
    const int64_t t = row / w.group;
    if (n_keys == ALORA_KEYS && seen[t] == sight::all) {
        return nullptr;
    }
    const float slope = (w.slope ? w.slope[row % w.group] : 1.0f) * LOG2E;
    for (int64_t i = 0; i < n_keys; ++i) {
        room[i] = w.mask ? to_float(f16{ w.mask[t][key + i] }) * slope : 0.0f;
    }
    for (int64_t i = n_keys; i < ALORA_KEYS; ++i) {
        room[i] = -INFINITY;
    }
    return room;
}

template <class V> inline void attend_few_all(const alora_attend & w) {
    const int64_t n_rows = w.n_tokens * w.group;
    float *       s      = w.scratch;
    float *       room   = s + ALORA_KEYS * 64;
    float *       k      = room + ALORA_KEYS * 64;
    float *       v      = k + ALORA_KEYS * w.k.d;
    float *       q      = v + ALORA_KEYS * w.v.d;

    const few_rows rows  = { q, w.partial, w.partial + n_rows, w.partial + 2 * n_rows };
    const float    scale = score_scale(w);
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t i = 0; i < w.k.d; ++i) {
            q[r * w.k.d + i] = w.q[r][i] * scale;
        }
        rows.m[r] = LOWEST;
    }
    memset(rows.l, 0, (1 + w.v.d) * n_rows * sizeof(float));

    const bool    in_place = w.k.type == w.v.type && w.k.type != GGML_TYPE_Q8_0;
    const float * bias[64];
    sight         seen[64];
    for (int64_t key = 0; key < w.n_keys; key += ALORA_KEYS) {
        const int64_t n    = w.n_keys - key < ALORA_KEYS ? w.n_keys - key : ALORA_KEYS;
        const sight   most = look(w, key, n, seen);
        if (most == sight::none) {
            continue;
        }
        int64_t next = key + 2 * ALORA_KEYS <= w.n_keys ? key + ALORA_KEYS : 0;
        for (int64_t r = 0; r < n_rows; ++r) {
            bias[r] = few_bias(w, seen, r, key, n, room + r * ALORA_KEYS);
        }
        const bool      direct = in_place && n == ALORA_KEYS && most == sight::all;
        const tile_rows kt     = { w.k.data + key * w.k.stride, w.k.stride };
        const tile_rows vt     = { w.v.data + key * w.v.stride, w.v.stride };
        if (direct && w.k.type == GGML_TYPE_F16) {
            attend_few_tile<V, f16>(w, kt, vt, s, bias, rows, next, false);
        } else if (direct && w.k.type == GGML_TYPE_BF16) {
            attend_few_tile<V, bf16>(w, kt, vt, s, bias, rows, next, false);
        } else if (direct) {
            attend_few_tile<V, float>(w, kt, vt, s, bias, rows, next, false);
        } else {
            load_tile<V>(w.k, key, n, k);
            load_tile<V>(w.v, key, n, v);
            attend_few_tile<V, float>(
                    w, { (char *) k, w.k.d * sizeof(float) }, { (char *) v, w.v.d * sizeof(float) },
                    s, bias, rows, next, most != sight::all && !all_finite<V>(v, w.v.d));
        }
    }
}

template <class V> inline void merge_few(const alora_merge & w) {
    for (int64_t r = 0; r < w.n_rows; ++r) {
        const float sink = w.sink ? w.sink[r] * LOG2E : LOWEST;
        float       top  = sink;
        for (int64_t i = 0; i < w.n; ++i) {
            const float other = w.partial[i * w.stride + r];
            top               = top > other ? top : other;
        }
        float sum = w.sink ? exp2_scalar(sink - top) : 0.0f;
        for (int64_t i = 0; i < w.n; ++i) {
            const float * from = w.partial + i * w.stride;
            sum += from[w.n_rows + r] * exp2_scalar(from[r] - top);
        }
        const float whole = sum == 0.0f ? 0.0f : 1.0f / sum;
        for (int64_t at = 0; at < w.d; at += V::N) {
            typename V::vec acc = V::zero();
            for (int64_t i = 0; i < w.n; ++i) {
                const float * from = w.partial + i * w.stride;
                const float   part = exp2_scalar(from[r] - top) * whole;
                acc = V::fma(V::load(from + 2 * w.n_rows + r * w.d + at), V::set1(part), acc);
            }
            V::store(w.out[r] + at, acc);
        }
    }
}

//
// whichever is faster
//

template <class V> void attend(const alora_attend & w) {
    if (w.n_tokens * w.group <= V::FEW_ROWS) {
        attend_few_all<V>(w);
    } else {
        attend_many<V>(w);
    }
}

template <class V> void merge(const alora_merge & w) {
    if (w.n_rows <= V::FEW_ROWS) {
        merge_few<V>(w);
    } else {
        merge_many<V>(w);
    }
}

}  // namespace
