// Attention for few rows of queries, where lanes full of rows would stay empty: here keys of a row's
// scores and values of a cell lie in the lanes, and a row has its scores as [keys] and its result as
// [d_v]. Cells are read where they are and widened on the way. V also has sum4(a, b, c, d, out),
// top(vec), the largest lane, and the constants
//   FEW_ROWS      up to this many rows these loops are faster than those of alora-attention-lane-major.h
//   FEW_AT_ONCE   rows beside each other, with the sums of 4 keys or of
//   FEW_WIDTH     vectors of a cell of V in registers
#pragma once

#include "alora-attention-tiles.h"

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

// o[row] = o[row] * rescale[row] + sum over the keys of p[row][key] * v[key], for R rows and W vectors.
template <class V, class E, int R, int W>
inline void few_values(
        const float * p, const tile_rows & v, int64_t n_keys, int64_t at, int64_t d,
        const float * rescale, float * o) {
    typename V::vec acc[R][W];
    ALORA_UNROLL
    for (int r = 0; r < R; ++r) {
        ALORA_UNROLL
        for (int i = 0; i < W; ++i) {
            acc[r][i] = V::mul(V::load(o + r * d + at + i * V::N), V::set1(rescale[r]));
        }
    }
    for (int64_t key = 0; key < n_keys; ++key) {
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
        const float * p, const tile_rows & v, int64_t n_keys, int64_t at, int64_t d,
        const float * rescale, float * o) {
    for (; at + W * V::N <= d; at += W * V::N) {
        few_values<V, E, R, W>(p, v, n_keys, at, d, rescale, o);
    }
    if constexpr (W > 1) {
        if (at < d) {
            few_values_all<V, E, R, W - 1>(p, v, n_keys, at, d, rescale, o);
        }
    }
}

// A row's scores become weights; returns what its result so far is multiplied by.
template <class V>
inline float few_weights(
        float * s, int64_t n_keys, float cap, const float * bias, float & top, float & sum) {
    typename V::vec m = V::set1(top);
    largest_scores<V, 1>(s, n_keys / V::N, cap, bias, V::N, &m);
    const float     largest = V::top(m);
    const float     rescale = exp2_scalar(top - largest);
    typename V::vec l       = V::zero();
    m                       = V::set1(largest);
    weights<V, 1>(s, n_keys / V::N, &m, &l);
    top = largest;
    sum = sum * rescale + V::sum(l);
    return rescale;
}

// What is known of a tile.
struct few_tile {
    tile_rows k;
    tile_rows v;
    int64_t   n_keys;   // to compute, a multiple of 16
    int64_t   next;     // the tile to ask for meanwhile, 0: none
    bool      guarded;  // V holds infinity or NaN, perhaps in cells that some row must not see
    const float * const * bias;  // [row][keys] is added to scores, null for rows that need nothing
};

// One tile for R rows from `first` on; q: [row][d_k], multiplied by score_scale().
template <class V, class E, int R>
inline void attend_few(
        const alora_attend & op, const few_tile & tile, const float * q, float * s,
        const split_rows & rows, int64_t first) {
    for (int64_t key = 0; key < tile.n_keys; key += 4) {
        if (tile.next > 0 && first == 0) {
            prefetch<1>(op.k, tile.next + key, 4);
            prefetch<1>(op.v, tile.next + key, 4);
        }
        few_scores<V, E, R>(q + first * op.k.d, tile.k, key, op.k.d, s);
    }
    float rescale[R];
    ALORA_UNROLL
    for (int r = 0; r < R; ++r) {
        rescale[r] = few_weights<V>(
                s + r * ALORA_KEYS, tile.n_keys, op.soft_cap, tile.bias[first + r],
                rows.m[first + r], rows.l[first + r]);
    }
    float * o = rows.o + first * op.v.d;
    if (tile.guarded) {
        const float * v = (const float *) tile.v.data;
        values_guarded(s, { ALORA_KEYS, 1 }, v, tile.n_keys, op.v.d, R, rescale, o, { op.v.d, 1 });
        return;
    }
    few_values_all<V, E, R, V::FEW_WIDTH>(s, tile.v, tile.n_keys, 0, op.v.d, rescale, o);
}

template <class V, class E, int R>
inline void attend_few_of(
        int64_t n, const alora_attend & op, const few_tile & tile, const float * q, float * s,
        const split_rows & rows, int64_t first) {
    if constexpr (R > 1) {
        if (n < R) {
            attend_few_of<V, E, R - 1>(n, op, tile, q, s, rows, first);
            return;
        }
    }
    attend_few<V, E, R>(op, tile, q, s, rows, first);
}

template <class V, class E>
inline void attend_few_tile(
        const alora_attend & op, const few_tile & tile, const float * q, float * s,
        const split_rows & rows) {
    const int64_t n_rows = op.n_tokens * op.group;
    for (int64_t first = 0; first < n_rows; first += V::FEW_AT_ONCE) {
        const int64_t left = n_rows - first;
        attend_few_of<V, E, V::FEW_AT_ONCE>(
                left < V::FEW_AT_ONCE ? left : V::FEW_AT_ONCE, op, tile, q, s, rows, first);
    }
}

template <class V> inline void attend_row_major(const alora_attend & op) {
    const int64_t n_rows = op.n_tokens * op.group;
    float *       s      = op.scratch;
    float *       room   = s + ALORA_KEYS * 64;
    float *       k      = room + ALORA_KEYS * 64;
    float *       v      = k + ALORA_KEYS * op.k.d;
    float *       q      = v + ALORA_KEYS * op.v.d;

    const split_rows rows  = split_rows_at(op.partial, 0, n_rows, op.v.d);
    const float      scale = score_scale(op);
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t i = 0; i < op.k.d; ++i) {
            q[r * op.k.d + i] = op.q[r][i] * scale;
        }
    }
    begin_rows(rows, n_rows, op.v.d);

    const bool    alike = op.k.type == op.v.type && in_place(op.k);
    const float * bias[64];
    coverage      by_token[64];
    for (int64_t key = 0; key < op.n_keys; key += ALORA_KEYS) {
        int64_t        n   = keys_in_tile(op, key);
        const coverage all = coverage_of_tile(op, key, n, by_token);
        if (all == coverage::empty) {
            continue;
        }
        for (int64_t r = 0; r < n_rows; ++r) {
            bias[r] = nullptr;
            if (n < ALORA_KEYS || by_token[r / op.group] != coverage::full) {
                bias[r] = room + r * ALORA_KEYS;
                write_bias(op, r, key, n, room + r * ALORA_KEYS, 1);
            }
        }
        few_tile   tile   = { { op.k.data + key * op.k.stride, op.k.stride },
            { op.v.data + key * op.v.stride, op.v.stride }, padded_keys(n), tile_after(op, key),
            false, bias };
        const bool direct = alike && n == ALORA_KEYS && all == coverage::full;
        if (direct && op.k.type == GGML_TYPE_F16) {
            attend_few_tile<V, f16>(op, tile, q, s, rows);
        } else if (direct && op.k.type == GGML_TYPE_BF16) {
            attend_few_tile<V, bf16>(op, tile, q, s, rows);
        } else if (direct) {
            attend_few_tile<V, float>(op, tile, q, s, rows);
        } else {
            load_tile<V>(op.k, key, n, tile.n_keys, k);
            load_tile<V>(op.v, key, n, tile.n_keys, v);
            tile.k       = { (const char *) k, op.k.d * sizeof(float) };
            tile.v       = { (const char *) v, op.v.d * sizeof(float) };
            tile.guarded = all != coverage::full && !all_finite<V>(v, tile.n_keys, op.v.d);
            attend_few_tile<V, float>(op, tile, q, s, rows);
        }
    }
}

template <class V> inline void combine_row_major(const alora_splits & op) {
    combine_factors(op, 0, op.n_rows);
    for (int64_t r = 0; r < op.n_rows; ++r) {
        for (int64_t at = 0; at < op.d; at += V::N) {
            typename V::vec sum = V::zero();
            for (int64_t i = 0; i < op.n_splits; ++i) {
                const split_rows rows = split_rows_of(op, i, 0, op.n_rows);
                sum = V::fma(V::load(rows.o + r * op.d + at), V::set1(rows.l[r]), sum);
            }
            V::store(op.out[r] + at, sum);
        }
    }
}

}  // namespace
