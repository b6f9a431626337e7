// The loops for x86 processors with AVX2, F16C and FMA; CMakeLists.txt compiles this file for them.
#include "alora-kernels.h"

#ifdef __AVX2__

#include "alora-kernels-of.h"

#include <immintrin.h>

namespace {

struct lanes8 {
    using vec                             = __m256;
    static constexpr int N                = 8;
    static constexpr int SHRINK_TOKENS    = 2;
    static constexpr int EXPAND_ONE_WIDTH = 8;
    static constexpr int EXPAND_WIDTH     = 2;
    static constexpr int EXPAND_TOKENS    = 6;
    static constexpr int LANE_VECS        = 2;
    static constexpr int BESIDE[]         = { 0, 8, 4 };
    static constexpr int FEW_ROWS         = 4;
    static constexpr int FEW_AT_ONCE      = 2;
    static constexpr int FEW_WIDTH        = 4;
    static constexpr int ATTEND_FROM      = 1;

    static vec zero() { return _mm256_setzero_ps(); }
    static vec set1(float f) { return _mm256_set1_ps(f); }
    static vec load(const float * p) { return _mm256_loadu_ps(p); }
    static vec load(const f16 * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
    static vec load(const bf16 * p) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    static void store(float * p, vec v) { _mm256_storeu_ps(p, v); }
    static vec  add(vec a, vec b) { return _mm256_add_ps(a, b); }
    static vec  fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
    static vec  load(const int8_t * p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) p)));
    }
    static vec sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
    static vec mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
    static vec div(vec a, vec b) { return _mm256_div_ps(a, b); }
    static vec min(vec a, vec b) { return _mm256_min_ps(a, b); }
    static vec max(vec a, vec b) { return _mm256_max_ps(a, b); }
    static vec round(vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT); }
    static vec pow2(vec p, vec n) {
        const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
    }
    static vec hide(vec s, vec mask) {
        const vec none = _mm256_set1_ps(-INFINITY);
        return _mm256_blendv_ps(
                _mm256_add_ps(s, mask), none, _mm256_cmp_ps(mask, none, _CMP_EQ_OQ));
    }
    static float top(vec v) {
        __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        m        = _mm_max_ps(m, _mm_movehl_ps(m, m));
        m        = _mm_max_ss(m, _mm_movehdup_ps(m));
        return _mm_cvtss_f32(m);
    }
    static void sum4(vec a, vec b, vec c, vec d, float * out) {
        const vec all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
    }
    static float sum(vec v) {
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        s        = _mm_add_ps(s, _mm_movehl_ps(s, s));
        s        = _mm_add_ss(s, _mm_movehdup_ps(s));
        return _mm_cvtss_f32(s);
    }
};

}  // namespace

const alora_kernels * alora_kernels_avx2() {
    static constexpr alora_kernels kernels = kernels_of<lanes8>("avx2");
    return &kernels;
}

#else

const alora_kernels * alora_kernels_avx2() {
    return nullptr;
}

#endif
