// The loops for x86 processors with AVX2, F16C and FMA; CMakeLists.txt compiles this file for them.
#include "alora-kernels.h"

#ifdef __AVX2__

#include "alora-kernels-loops.h"

#include <immintrin.h>

namespace {

struct lanes8 {
    using vec                        = __m256;
    static constexpr int N           = 8;
    static constexpr int DOT_TOKENS  = 2;
    static constexpr int ONE_WIDTH   = 8;
    static constexpr int AXPY_WIDTH  = 2;
    static constexpr int AXPY_TOKENS = 6;

    static vec zero() { return _mm256_setzero_ps(); }
    static vec set1(float f) { return _mm256_set1_ps(f); }
    static vec load(const float * p) { return _mm256_loadu_ps(p); }
    static vec load(const f16 * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
    static vec load(const bf16 * p) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    static void  store(float * p, vec v) { _mm256_storeu_ps(p, v); }
    static vec   add(vec a, vec b) { return _mm256_add_ps(a, b); }
    static vec   fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
    static float sum(vec v) {
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        s        = _mm_add_ps(s, _mm_movehl_ps(s, s));
        s        = _mm_add_ss(s, _mm_movehdup_ps(s));
        return _mm_cvtss_f32(s);
    }
};

}  // namespace

const alora_kernels * alora_kernels_avx2() {
    static constexpr alora_kernels kernels = { "avx2", dot<lanes8>, axpy<lanes8> };
    return &kernels;
}

#else

const alora_kernels * alora_kernels_avx2() {
    return nullptr;
}

#endif
