// The loops for 64-bit ARM processors, all of which have NEON and convert F16.
#include "alora-kernels.h"

#if defined(__ARM_NEON) && defined(__aarch64__)

#include "alora-kernels-of.h"

#include <arm_neon.h>

namespace {

struct lanes4 {
    using vec                             = float32x4_t;
    static constexpr int N                = 4;
    static constexpr int SHRINK_TOKENS    = 4;
    static constexpr int EXPAND_ONE_WIDTH = 16;
    static constexpr int EXPAND_WIDTH     = 4;
    static constexpr int EXPAND_TOKENS    = 5;
    static constexpr int LANE_VECS        = 4;
    static constexpr int BESIDE[]         = { 0, 16, 8, 4, 4 };
    static constexpr int FEW_ROWS         = 4;
    static constexpr int FEW_AT_ONCE      = 4;
    static constexpr int FEW_WIDTH        = 4;
    static constexpr int ATTEND_FROM = 4;  // not measured: a row by itself gains nothing from this

    static vec zero() { return vdupq_n_f32(0.0f); }
    static vec set1(float f) { return vdupq_n_f32(f); }
    static vec load(const float * p) { return vld1q_f32(p); }
    static vec load(const f16 * p) {
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *) p)));
    }
    static vec load(const bf16 * p) {
        return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *) p), 16));
    }
    static void store(float * p, vec v) { vst1q_f32(p, v); }
    static vec  add(vec a, vec b) { return vaddq_f32(a, b); }
    static vec  fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
    static vec  load(const int8_t * p) {
        int32_t four;
        memcpy(&four, p, sizeof(four));
        const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
    }
    static vec sub(vec a, vec b) { return vsubq_f32(a, b); }
    static vec mul(vec a, vec b) { return vmulq_f32(a, b); }
    static vec div(vec a, vec b) { return vdivq_f32(a, b); }
    static vec min(vec a, vec b) { return vminq_f32(a, b); }
    static vec max(vec a, vec b) { return vmaxq_f32(a, b); }
    static vec round(vec a) { return vrndnq_f32(a); }
    static vec pow2(vec p, vec n) {
        const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
        return vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
    }
    static vec hide(vec s, vec mask) {
        const vec none = vdupq_n_f32(-INFINITY);
        return vbslq_f32(vceqq_f32(mask, none), none, vaddq_f32(s, mask));
    }
    static float top(vec v) { return vmaxvq_f32(v); }
    static void  sum4(vec a, vec b, vec c, vec d, float * out) {
        vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
    }
    static float sum(vec v) { return vaddvq_f32(v); }
};

}  // namespace

const alora_kernels * alora_kernels_neon() {
    static constexpr alora_kernels kernels = kernels_of<lanes4>("neon");
    return &kernels;
}

#else

const alora_kernels * alora_kernels_neon() {
    return nullptr;
}

#endif
