// Chooses the loops for the processor at hand.
#include "alora-kernels.h"

#if defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
#include <immintrin.h>
#include <intrin.h>
#endif

namespace {

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
