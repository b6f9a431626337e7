// Attention for many rows of queries (alora_attend). Rows lie in the lanes: a block of W = NV*N rows has
// its queries as [d_k][W], its scores as [keys][W] and its result as [d_v][W], so that cells of K and V
// are read as they lie, value by value, each for W rows, and a row's largest score needs no sum across
// lanes. Constants of V:
//   LANE_VECS     vectors in a block of rows at most
//   BESIDE        by vectors in a block: keys, or values of a cell, that are computed beside each
//                 other; divisors of 16, as many as have their sums in registers
#pragma once

#include "alora-attention-tiles.h"

namespace {

//
// a block of rows
//

// What is known of a tile beside a block.
struct block_tile {
    int64_t       n_keys = 0;        // to compute, a multiple of 16
    const float * bias   = nullptr;  // added to scores: [width] or, if by_key, [keys][width]
    bool          by_key = false;
    bool guarded = false;  // V holds infinity or NaN, perhaps in cells that some row must not see
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

// o[i][row] = o[i][row] * rescale[row] + sum over the keys of p[key][row] * v[key][i] for ND values i.
template <class V, int NV, int ND>
inline void values(
        const float * p, const float * v, int64_t n_keys, int64_t d,
        const typename V::vec * rescale, float * o) {
    typename V::vec acc[ND][NV];
    ALORA_UNROLL
    for (int i = 0; i < ND; ++i) {
        ALORA_UNROLL
        for (int r = 0; r < NV; ++r) {
            acc[i][r] = V::mul(V::load(o + (i * NV + r) * V::N), rescale[r]);
        }
    }
    for (int64_t key = 0; key < n_keys; ++key) {
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

// One tile's keys for one block's rows; meanwhile the tile at `next`, if any, is asked for. The first
// level is full of this one.
template <class V, int NV>
inline void attend_block(
        const alora_attend & op, const float * q, const float * k, const float * v, float * s,
        const block_tile & tile, int64_t next, const split_rows & rows) {
    constexpr int W = NV * V::N;
    constexpr int B = V::BESIDE[NV];
    for (int64_t key = 0; key < tile.n_keys; key += B) {
        if (next > 0) {
            prefetch<2>(op.k, next + key, B);
        }
        scores<V, NV, B>(q, k + key * op.k.d, op.k.d, s + key * W);
    }

    typename V::vec m[NV], l[NV], rescale[NV];
    ALORA_UNROLL
    for (int r = 0; r < NV; ++r) {
        m[r] = V::load(rows.m + r * V::N);
    }
    largest_scores<V, NV>(s, tile.n_keys, op.soft_cap, tile.bias, tile.by_key ? W : 0, m);
    ALORA_UNROLL
    for (int r = 0; r < NV; ++r) {
        rescale[r] = exp2<V>(V::sub(V::load(rows.m + r * V::N), m[r]));
        l[r]       = V::mul(V::load(rows.l + r * V::N), rescale[r]);
    }
    weights<V, NV>(s, tile.n_keys, m, l);
    ALORA_UNROLL
    for (int r = 0; r < NV; ++r) {
        V::store(rows.m + r * V::N, m[r]);
        V::store(rows.l + r * V::N, l[r]);
    }

    if (tile.guarded) {
        float each[W];
        for (int r = 0; r < NV; ++r) {
            V::store(each + r * V::N, rescale[r]);
        }
        values_guarded(s, { 1, W }, v, tile.n_keys, op.v.d, W, each, rows.o, { 1, W });
        return;
    }
    const int64_t share = ALORA_KEYS * B / op.v.d;
    for (int64_t i = 0, key = 0; i < op.v.d; i += B, key += share) {
        if (next > 0) {
            prefetch<2>(op.v, next + key, share);
        }
        values<V, NV, B>(s, v + i, tile.n_keys, op.v.d, rescale, rows.o + i * W);
    }
}

template <class V, int NV>
inline void attend_block_of(
        int64_t n_vecs, const alora_attend & op, const float * q, const float * k, const float * v,
        float * s, const block_tile & tile, int64_t next, const split_rows & rows) {
    if constexpr (NV > 1) {
        if (n_vecs < NV) {
            attend_block_of<V, NV - 1>(n_vecs, op, q, k, v, s, tile, next, rows);
            return;
        }
    }
    attend_block<V, NV>(op, q, k, v, s, tile, next, rows);
}

//
// from block to block
//

// Calls body(first row, vectors) for blocks of nearly equal size.
template <class V, class F> inline void for_blocks(int64_t n_rows, const F & body) {
    int64_t left     = (n_rows + V::N - 1) / V::N;
    int64_t n_blocks = (left + V::LANE_VECS - 1) / V::LANE_VECS;
    for (int64_t first = 0; n_blocks > 0; --n_blocks) {
        const int64_t n_vecs = (left + n_blocks - 1) / n_blocks;
        body(first, n_vecs);
        first += n_vecs * V::N;
        left -= n_vecs;
    }
}

// False if a block's rows see nothing of a tile.
inline bool tile_of_block(
        const alora_attend & op, const coverage * by_token, int64_t first, int64_t width,
        int64_t key, int64_t n_keys, float * room, block_tile & result) {
    const int64_t n_rows = op.n_tokens * op.group;
    const int64_t last   = first + width < n_rows ? first + width : n_rows;

    bool empty   = true;
    bool full    = n_keys == ALORA_KEYS;
    bool partial = n_keys < ALORA_KEYS;
    for (int64_t t = first / op.group; t <= (last - 1) / op.group; ++t) {
        empty &= by_token[t] == coverage::empty;
        full &= by_token[t] == coverage::full;
        partial |= by_token[t] == coverage::partial;
    }
    result        = {};
    result.n_keys = padded_keys(n_keys);
    if (empty || full) {
        return !empty;
    }
    result.bias   = room;
    result.by_key = partial;
    for (int64_t r = 0; r < width; ++r) {
        const int64_t row = first + r < last ? first + r : last - 1;
        if (partial) {
            write_bias(op, row, key, n_keys, room + r, width);
        } else {
            const bool hidden = first + r < last && by_token[row / op.group] == coverage::empty;
            room[r]           = hidden ? -INFINITY : 0.0f;
        }
    }
    return true;
}

// Queries of all blocks as [d_k][width], zeros in lanes without a row; results begin.
template <class V> inline void begin_blocks(const alora_attend & op, float * q) {
    const int64_t n_rows = op.n_tokens * op.group;
    const float   scale  = score_scale(op);
    for_blocks<V>(n_rows, [&](int64_t first, int64_t n_vecs) {
        const int64_t width = n_vecs * V::N;
        float *       to    = q + first * op.k.d;
        for (int64_t r = 0; r < width; ++r) {
            const float * from = first + r < n_rows ? op.q[first + r] : nullptr;
            for (int64_t i = 0; i < op.k.d; ++i) {
                to[i * width + r] = from ? from[i] * scale : 0.0f;
            }
        }
        begin_rows(split_rows_at(op.partial, first, width, op.v.d), width, op.v.d);
    });
}

template <class V> inline void attend_lane_major(const alora_attend & op) {
    float * s    = op.scratch;
    float * bias = s + ALORA_KEYS * 64;
    float * k    = bias + ALORA_KEYS * 64;
    float * v    = k + ALORA_KEYS * op.k.d;
    float * q    = v + ALORA_KEYS * op.v.d;
    begin_blocks<V>(op, q);

    coverage by_token[64];
    for (int64_t key = 0; key < op.n_keys; key += ALORA_KEYS) {
        int64_t        n   = keys_in_tile(op, key);
        const coverage all = coverage_of_tile(op, key, n, by_token);
        if (all == coverage::empty) {
            continue;
        }
        int64_t next = tile_after(op, key);
        load_tile<V>(op.k, key, n, padded_keys(n), k);
        load_tile<V>(op.v, key, n, padded_keys(n), v);
        const bool finite = all == coverage::full || all_finite<V>(v, padded_keys(n), op.v.d);
        for_blocks<V>(op.n_tokens * op.group, [&](int64_t first, int64_t n_vecs) {
            block_tile    tile;
            const int64_t width = n_vecs * V::N;
            if (tile_of_block(op, by_token, first, width, key, n, bias, tile)) {
                tile.guarded = !finite;
                attend_block_of<V, V::LANE_VECS>(
                        n_vecs, op, q + first * op.k.d, k, v, s, tile, next,
                        split_rows_at(op.partial, first, width, op.v.d));
                next = 0;
            }
        });
    }
}

template <class V>
inline void combine_block(const alora_splits & op, int64_t first, int64_t width) {
    combine_factors(op, first, width);
    const int64_t n = op.n_rows - first < width ? op.n_rows - first : width;
    // 16 values of all rows at a time, which make a cache line of each row
    float lines[16 * 64];
    for (int64_t at = 0; at < op.d; at += 16) {
        for (int64_t r = 0; r < 16 * width; r += V::N) {
            typename V::vec sum = V::zero();
            for (int64_t i = 0; i < op.n_splits; ++i) {
                const split_rows rows = split_rows_of(op, i, first, width);
                sum = V::fma(V::load(rows.o + at * width + r), V::load(rows.l + r % width), sum);
            }
            V::store(lines + r, sum);
        }
        for (int64_t r = 0; r < n; ++r) {
            for (int64_t i = 0; i < 16; ++i) {
                op.out[first + r][at + i] = lines[i * width + r];
            }
        }
    }
}

template <class V> inline void combine_lane_major(const alora_splits & op) {
    for_blocks<V>(op.n_rows, [&](int64_t first, int64_t n_vecs) {
        combine_block<V>(op, first, n_vecs * V::N);
    });
}

}  // namespace
