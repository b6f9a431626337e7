// The loops for 64-bit ARM processors, all of which have NEON and convert F16.
#include "alora-kernels.h"

#if defined(__ARM_NEON) && defined(__aarch64__)

#include "alora-kernels-loops.h"

#include <arm_neon.h>

namespace {

struct lanes4 {
    using vec                        = float32x4_t;
    static constexpr int N           = 4;
    static constexpr int DOT_TOKENS  = 4;
    static constexpr int ONE_WIDTH   = 16;
    static constexpr int AXPY_WIDTH  = 4;
    static constexpr int AXPY_TOKENS = 5;

    static vec zero() { return vdupq_n_f32(0.0f); }
    static vec set1(float f) { return vdupq_n_f32(f); }
    static vec load(const float * p) { return vld1q_f32(p); }
    static vec load(const f16 * p) {
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *) p)));
    }
    static vec load(const bf16 * p) {
        return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *) p), 16));
    }
    static void  store(float * p, vec v) { vst1q_f32(p, v); }
    static vec   add(vec a, vec b) { return vaddq_f32(a, b); }
    static vec   fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
    static float sum(vec v) { return vaddvq_f32(v); }
};

}  // namespace

const alora_kernels * alora_kernels_neon() {
    static constexpr alora_kernels kernels = { "neon", dot<lanes4>, axpy<lanes4> };
    return &kernels;
}

#else

const alora_kernels * alora_kernels_neon() {
    return nullptr;
}

#endif
