// Chooses the loops for the processor at hand, and has those for any other.
#include "alora-kernels.h"

#include "alora-kernels-loops.h"

#if defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
#include <immintrin.h>
#include <intrin.h>
#endif

namespace {

// Plain C++ in a form that compilers make vectors of.
struct lanes_plain {
    static constexpr int N           = 8;
    static constexpr int DOT_TOKENS  = 1;
    static constexpr int ONE_WIDTH   = 2;
    static constexpr int AXPY_WIDTH  = 2;
    static constexpr int AXPY_TOKENS = 2;

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
    static float sum(const vec & a) {
        return ((a.v[0] + a.v[4]) + (a.v[1] + a.v[5])) + ((a.v[2] + a.v[6]) + (a.v[3] + a.v[7]));
    }
};

#if defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))

// What the processor has and the operating system saves.
bool has(int leaf, int reg, int bit) {
    int cpu[4];
    __cpuidex(cpu, leaf, 0);
    return (cpu[reg] >> bit) & 1;
}

bool has_avx2() {
    return has(1, 2, 27) && (_xgetbv(0) & 6) == 6 && has(1, 2, 12) && has(1, 2, 29) && has(7, 1, 5);
}

bool has_avx512() {
    return has_avx2() && (_xgetbv(0) & 0xe6) == 0xe6 && has(7, 1, 16);
}

#elif defined(__x86_64__) || defined(__i386__)

bool has_avx2() {
    // every processor with AVX2 converts F16, and __builtin_cpu_supports() may not know "f16c"
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
    return __builtin_cpu_supports("avx512f");
}

#else

bool has_avx2() {
    return false;
}

bool has_avx512() {
    return false;
}

#endif

}  // namespace

const alora_kernels * alora_kernels_plain() {
    static constexpr alora_kernels kernels = { "plain", dot<lanes_plain>, axpy<lanes_plain> };
    return &kernels;
}

std::vector<const alora_kernels *> alora_kernels_all() {
    std::vector<const alora_kernels *> all;
    for (const alora_kernels * kernels : { has_avx512() ? alora_kernels_avx512() : nullptr,
                 has_avx2() ? alora_kernels_avx2() : nullptr, alora_kernels_neon(),
                 alora_kernels_plain() }) {
        if (kernels) {
            all.push_back(kernels);
        }
    }
    return all;
}

const alora_kernels & alora_kernels_best() {
    static const alora_kernels & best = *alora_kernels_all().front();
    return best;
}
