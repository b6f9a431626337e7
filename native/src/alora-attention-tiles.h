// Tiles of ALORA_KEYS cells of K or V as floats, and what of a tile the mask lets each token see.
#pragma once

#include "alora-attention-softmax.h"

namespace {

//
// cells
//

template <class V, class E> inline void widen(const char * from, int64_t d, float * to) {
    for (int64_t i = 0; i < d; i += V::N) {
        V::store(to + i, V::load((const E *) from + i));
    }
}

template <class V> inline void widen_q8_0(const char * from, int64_t d, float * to) {
    const q8_0 * block = (const q8_0 *) from;
    for (int64_t i = 0; i < d; i += ALORA_BLOCK, ++block) {
        const typename V::vec scale = V::set1(to_float(block->scale));
        for (int64_t at = 0; at < ALORA_BLOCK; at += V::N) {
            V::store(to + i + at, V::mul(scale, V::load(block->value + at)));
        }
    }
}

// Whether the loops read cells where they are.
inline bool in_place(const alora_attend::cells & c) {
    return c.type == GGML_TYPE_F32 || c.type == GGML_TYPE_F16 || c.type == GGML_TYPE_BF16;
}

// `n` cells from `first` on as rows of floats, and zeros for the rest of `padded`.
template <class V>
inline void load_tile(
        const alora_attend::cells & c, int64_t first, int64_t n, int64_t padded, float * to) {
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
            case GGML_TYPE_F32:
                widen<V, float>(from, c.d, to);
                break;
            default:
                c.to_float(from, to, c.d);
                break;
        }
    }
    memset(to, 0, (padded - n) * c.d * sizeof(float));
}

template <class V> inline bool all_finite(const float * tile, int64_t n, int64_t d) {
    typename V::vec sum = V::zero();
    for (int64_t i = 0; i < n * d; i += V::N) {
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

// Keys of the tile from `key` on.
inline int64_t keys_in_tile(const alora_attend & op, int64_t key) {
    return op.n_keys - key < ALORA_KEYS ? op.n_keys - key : ALORA_KEYS;
}

// The tile to ask for while that from `key` on is computed, 0: none. A last one that is not whole is
// not asked for, because cells behind the last are not ours to touch.
inline int64_t tile_after(const alora_attend & op, int64_t key) {
    return key + 2 * ALORA_KEYS <= op.n_keys ? key + ALORA_KEYS : 0;
}

//
// masks
//

// Which keys of a tile are seen: all, none or some.
enum class coverage { full, empty, partial };

// By one token, of `n` keys, `n` > 0.
inline coverage coverage_of(const uint16_t * mask, int64_t n) {
    uint16_t any = 0, other = 0;
    for (int64_t i = 0; i < n; ++i) {
        any |= mask[i];
        other |= mask[i] ^ ALORA_HIDDEN;
    }
    return other == 0 ? coverage::empty : (any & 0x7fff) == 0 ? coverage::full : coverage::partial;
}

// By each token, and by all of them; `n` becomes what is up to the last key that any of them sees.
inline coverage coverage_of_tile(
        const alora_attend & op, int64_t key, int64_t & n, coverage * by_token) {
    bool    full = true, empty = true;
    int64_t seen = 0;
    for (int64_t t = 0; t < op.n_tokens; ++t) {
        by_token[t] = op.mask ? coverage_of(op.mask[t] + key, n) : coverage::full;
        full &= by_token[t] == coverage::full;
        empty &= by_token[t] == coverage::empty;
        if (by_token[t] == coverage::full) {
            seen = n;
        } else if (by_token[t] == coverage::partial) {
            int64_t last = n;
            while (last > seen && op.mask[t][key + last - 1] == ALORA_HIDDEN) {
                --last;
            }
            seen = last;
        }
    }
    n = seen;
    return full ? coverage::full : empty ? coverage::empty : coverage::partial;
}

// Keys that are computed where `n` are seen: as many as are computed at once, whatever the layout.
constexpr int64_t padded_keys(int64_t n) {
    return (n + 15) / 16 * 16;
}

// What a row adds to its scores, `step` floats apart: its mask times its slope, and -inf for the keys
// behind its first `n`.
inline void write_bias(
        const alora_attend & op, int64_t row, int64_t key, int64_t n, float * to, int64_t step) {
    const float      slope = (op.slope ? op.slope[row % op.group] : 1.0f) * LOG2E;
    const uint16_t * mask  = op.mask ? op.mask[row / op.group] + key : nullptr;
    for (int64_t i = 0; i < n; ++i) {
        to[i * step] = mask ? to_float(f16{ mask[i] }) * slope : 0.0f;
    }
    for (int64_t i = n; i < padded_keys(n); ++i) {
        to[i * step] = -INFINITY;
    }
}

}  // namespace
