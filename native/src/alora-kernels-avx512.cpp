// The loops for x86 processors with AVX-512; CMakeLists.txt compiles this file for them.
#include "alora-kernels.h"

#ifdef __AVX512F__

#include "alora-kernels-loops.h"

#include <immintrin.h>

namespace {

struct lanes16 {
    using vec                        = __m512;
    static constexpr int N           = 16;
    static constexpr int DOT_TOKENS  = 4;
    static constexpr int ONE_WIDTH   = 4;
    static constexpr int AXPY_WIDTH  = 4;
    static constexpr int AXPY_TOKENS = 6;

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
    static void  store(float * p, vec v) { _mm512_storeu_ps(p, v); }
    static vec   add(vec a, vec b) { return _mm512_add_ps(a, b); }
    static vec   fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
    static float sum(vec v) { return _mm512_reduce_add_ps(v); }
};

}  // namespace

const alora_kernels * alora_kernels_avx512() {
    static constexpr alora_kernels kernels = { "avx512", dot<lanes16>, axpy<lanes16> };
    return &kernels;
}

#else

const alora_kernels * alora_kernels_avx512() {
    return nullptr;
}

#endif
