// The loops for any processor.
#include "alora-kernels-of.h"
#include "alora-kernels.h"

namespace {

// Plain C++ in a form that compilers make vectors of.
struct lanes_plain {
    static constexpr int N                = 8;
    static constexpr int SHRINK_TOKENS    = 1;
    static constexpr int EXPAND_ONE_WIDTH = 2;
    static constexpr int EXPAND_WIDTH     = 2;
    static constexpr int EXPAND_TOKENS    = 2;
    static constexpr int LANE_VECS        = 1;
    static constexpr int BESIDE[]         = { 0, 4 };
    static constexpr int FEW_ROWS         = 2;
    static constexpr int FEW_AT_ONCE      = 1;
    static constexpr int FEW_WIDTH        = 2;
    static constexpr int ATTEND_FROM      = 16;

    struct vec {
        float v[N];
    };

    static vec zero() { return {}; }
    static vec set1(float f) {
        vec out;
        for (float & value : out.v) {
            value = f;
        }
        return out;
    }
    template <class E> static vec load(const E * p) {
        vec out;
        for (int i = 0; i < N; ++i) {
            out.v[i] = to_float(p[i]);
        }
        return out;
    }
    static void store(float * p, const vec & a) { memcpy(p, a.v, sizeof(a.v)); }
    static vec  add(const vec & a, const vec & b) {
        vec out;
        for (int i = 0; i < N; ++i) {
            out.v[i] = a.v[i] + b.v[i];
        }
        return out;
    }
    static vec fma(const vec & a, const vec & b, const vec & c) {
        vec out;
        for (int i = 0; i < N; ++i) {
            out.v[i] = a.v[i] * b.v[i] + c.v[i];
        }
        return out;
    }
    template <class F> static vec each(const F & value) {
        vec out;
        for (int i = 0; i < N; ++i) {
            out.v[i] = value(i);
        }
        return out;
    }
    static vec sub(const vec & a, const vec & b) {
        return each([&](int i) { return a.v[i] - b.v[i]; });
    }
    static vec mul(const vec & a, const vec & b) {
        return each([&](int i) { return a.v[i] * b.v[i]; });
    }
    static vec div(const vec & a, const vec & b) {
        return each([&](int i) { return a.v[i] / b.v[i]; });
    }
    static vec min(const vec & a, const vec & b) {
        return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
    }
    static vec max(const vec & a, const vec & b) {
        return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    }
    static vec round(const vec & a) {
        return each([&](int i) { return a.v[i] + 0x1.8p23f - 0x1.8p23f; });
    }
    static vec pow2(const vec & p, const vec & n) {
        return each([&](int i) {
            const uint32_t bits = (uint32_t) ((n.v[i] > -127.0f ? (int32_t) n.v[i] : -127) + 127)
                                  << 23;
            float          power;
            memcpy(&power, &bits, sizeof(power));
            return p.v[i] * power;
        });
    }
    static vec hide(const vec & a, const vec & b) {
        return each([&](int i) { return b.v[i] == -INFINITY ? b.v[i] : a.v[i] + b.v[i]; });
    }
    static float top(const vec & a) {
        float top = a.v[0];
        for (const float value : a.v) {
            top = top > value ? top : value;
        }
        return top;
    }
    static void sum4(const vec & a, const vec & b, const vec & c, const vec & d, float * out) {
        out[0] = sum(a);
        out[1] = sum(b);
        out[2] = sum(c);
        out[3] = sum(d);
    }
    static float sum(const vec & a) {
        return ((a.v[0] + a.v[4]) + (a.v[1] + a.v[5])) + ((a.v[2] + a.v[6]) + (a.v[3] + a.v[7]));
    }
};

}  // namespace

const alora_kernels * alora_kernels_plain() {
    static constexpr alora_kernels kernels = kernels_of<lanes_plain>("plain");
    return &kernels;
}
