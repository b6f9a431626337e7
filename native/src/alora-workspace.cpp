#include "alora-workspace.h"

#include <new>

static constexpr int64_t CACHE_LINE = 64;

bool alora_workspace::reserve(int64_t n) {
    if (n <= n_floats) {
        return true;
    }
    // the old memory stays until there is new: another graph of the context may still use it
    std::unique_ptr<float[]> fresh(new (std::nothrow) float[n + CACHE_LINE / sizeof(float)]);
    if (!fresh) {
        return false;
    }
    memory   = std::move(fresh);
    aligned  = (float *) (((uintptr_t) memory.get() + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
    n_floats = n;
    return true;
}
