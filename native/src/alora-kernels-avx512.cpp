// The loops for x86 processors with AVX-512; CMakeLists.txt compiles this file for them.
#include "alora-kernels.h"

#ifdef __AVX512F__

#include "alora-kernels-of.h"

#include <immintrin.h>

namespace {

struct lanes16 {
    using vec                             = __m512;
    static constexpr int N                = 16;
    static constexpr int SHRINK_TOKENS    = 4;
    static constexpr int EXPAND_ONE_WIDTH = 4;
    static constexpr int EXPAND_WIDTH     = 4;
    static constexpr int EXPAND_TOKENS    = 6;
    static constexpr int LANE_VECS        = 4;
    static constexpr int BESIDE[]         = { 0, 16, 8, 8, 4 };
    static constexpr int FEW_ROWS         = 8;
    static constexpr int FEW_AT_ONCE      = 4;
    static constexpr int FEW_WIDTH        = 4;
    static constexpr int ATTEND_FROM      = 1;

    static vec zero() { return _mm512_setzero_ps(); }
    static vec set1(float f) { return _mm512_set1_ps(f); }
    static vec load(const float * p) { return _mm512_loadu_ps(p); }
    static vec load(const f16 * p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p));
    }
    static vec load(const bf16 * p) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    static void store(float * p, vec v) { _mm512_storeu_ps(p, v); }
    static vec  add(vec a, vec b) { return _mm512_add_ps(a, b); }
    static vec  fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
    static vec  load(const int8_t * p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p)));
    }
    static vec sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
    static vec mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
    static vec div(vec a, vec b) { return _mm512_div_ps(a, b); }
    static vec min(vec a, vec b) { return _mm512_min_ps(a, b); }
    static vec max(vec a, vec b) { return _mm512_max_ps(a, b); }
    static vec round(vec a) { return _mm512_roundscale_ps(a, 0); }
    static vec pow2(vec p, vec n) {
        const __mmask16 counts = _mm512_cmp_ps_mask(n, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
        return _mm512_maskz_scalef_ps(counts, p, n);
    }
    static vec hide(vec s, vec mask) {
        const vec       none = _mm512_set1_ps(-INFINITY);
        const __mmask16 seen = _mm512_cmp_ps_mask(mask, none, _CMP_NEQ_UQ);
        return _mm512_mask_add_ps(none, seen, s, mask);
    }
    static float top(vec v) { return _mm512_reduce_max_ps(v); }
    static void  sum4(vec a, vec b, vec c, vec d, float * out) {
        const vec ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        const vec cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        const vec all =
                _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
        const __m256 half = _mm256_add_ps(
                _mm512_castps512_ps256(all),
                _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
        _mm_storeu_ps(
                out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
    }
    static float sum(vec v) { return _mm512_reduce_add_ps(v); }
};

}  // namespace

const alora_kernels * alora_kernels_avx512() {
    static constexpr alora_kernels kernels = kernels_of<lanes16>("avx512");
    return &kernels;
}

#else

const alora_kernels * alora_kernels_avx512() {
    return nullptr;
}

#endif
