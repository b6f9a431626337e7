// Where memory ends: every call that fails leaves the bank, the cache and the context as they were, and
// what is decoded afterwards has the bits that it would have had.
#include "alora.h"
#include "tiny_context.h"

#include <atomic>
#include <cerrno>
#include <memory>
#include <new>

// One thread does it all: nothing for TSan. On Windows each library has a C++ allocator of its own, so this
// program has libllama inside instead of beside it, and ggml's own allocations do not fail.
#if defined(__linux__) && defined(__GLIBC__) && !defined(__SANITIZE_THREAD__)
#include <dlfcn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#define CAN_FAIL 1
#define CAN_LIMIT !SANITIZED  // a sanitizer needs much memory of its own
#elif defined(__MINGW32__)
#define CAN_FAIL 1
#define CAN_LIMIT 0
#else
#define CAN_FAIL 0
#endif

#if CAN_FAIL

// The allocation that fails, counted from now on; 0: none. C++'s, and ggml's of buffers: its small ones
// of C are not checked by upstream, which is why ours asks for more than these before calling it.
static std::atomic<int64_t> fails_at{ 0 };

static bool fails_now() {
    return fails_at.load(std::memory_order_relaxed) > 0 && fails_at.fetch_sub(1) == 1;
}

// What is upstream's own to mend: its CPU backend frees its work buffer twice where the new one throws;
// and built with asserts, its cache ends the process over a cell whose position could not be noted, which
// is taken out all the same.
static bool is_spared(void * caller) {
#ifdef _WIN32
    (void) caller;  // never the CPU's backend
    return false;
#else
    Dl_info info;
    if (!dladdr(caller, &info)) {
        return false;
    }
#ifndef NDEBUG
    if (info.dli_sname && strstr(info.dli_sname, "Rb_tree") && strstr(info.dli_sname, "pairIij")) {
        return true;
    }
#endif
    return info.dli_fname && strstr(info.dli_fname, "ggml-cpu");
#endif
}

static void * allocate_or_not(size_t size, void * caller) {
    const bool fails = fails_at > 0 && !is_spared(caller) && fails_now();
    return fails ? nullptr : malloc(size ? size : 1);
}

static void * allocate(size_t size, void * caller) {
    void * memory = allocate_or_not(size, caller);
    if (!memory) {
        throw std::bad_alloc();
    }
    return memory;
}

void * operator new(size_t size) {
    return allocate(size, __builtin_return_address(0));
}

void * operator new[](size_t size) {
    return allocate(size, __builtin_return_address(0));
}

void * operator new(size_t size, const std::nothrow_t &) noexcept {
    return allocate_or_not(size, __builtin_return_address(0));
}

void * operator new[](size_t size, const std::nothrow_t &) noexcept {
    return allocate_or_not(size, __builtin_return_address(0));
}

void operator delete(void * memory) noexcept {
    free(memory);
}

void operator delete(void * memory, size_t) noexcept {
    free(memory);
}

void operator delete[](void * memory) noexcept {
    free(memory);
}

void operator delete[](void * memory, size_t) noexcept {
    free(memory);
}

#ifndef _WIN32
extern "C" int posix_memalign(void ** memory, size_t alignment, size_t size) noexcept {
    static constexpr size_t SMALLEST_BUFFER = 32 * 1024;
    static const auto real = (int (*)(void **, size_t, size_t)) dlsym(RTLD_NEXT, "posix_memalign");
    return size >= SMALLEST_BUFFER && fails_now() ? ENOMEM : real(memory, alignment, size);
}
#endif

// An exception leaves behind what upstream holds in plain pointers: its readers of files, its batches.
extern "C" const char * __asan_default_options() {
    return "detect_leaks=0";
}

// What `body` returns if its k-th allocation fails, and whether it had so many.
template <typename F> static int32_t failing(int64_t k, bool & reached, const F & body) {
    fails_at             = k;
    const int32_t result = body();
    reached              = fails_at.exchange(0) <= 0;
    return result;
}

// Every allocation at first, then some.
static int64_t after(int64_t k) {
    return k < 64 ? k + 1 : k + 1 + k / 16;
}

static std::vector<float> of_the_base(const tiny_llama & base) {
    context fresh(base, GGML_TYPE_F16, nullptr, nullptr, 0, 1);
    fresh.decode(reading(12, 1));
    return fresh.logits(11);
}

// Sequence 1 belongs to the base; it is read and forgotten.
static void check_base(context & ours, const std::vector<float> & expected) {
    ours.decode(reading(12, 1));
    CHECK(ours.logits(11) == expected);
    CHECK(llama_memory_seq_rm(ours.memory(), 1, -1, -1));
}

static void check_same(const alora_stats & now, const alora_stats & before) {
    CHECK(now.bank_bytes == before.bank_bytes && now.n_targets == before.n_targets);
    CHECK(now.n_slots == before.n_slots && now.n_adapters == before.n_adapters);
    CHECK(now.rank == before.rank && now.n_vectors == before.n_vectors);
}

// `prepare` makes a context, `call` is what fails.
template <typename P, typename C>
static void test_failing(
        const tiny_llama & base, const P & prepare, const C & call, int64_t at_least = 50) {
    const auto expected = of_the_base(base);
    auto       ours     = prepare();
    int64_t    n_failed = 0;
    bool       reached  = true;
    for (int64_t k = 1; reached; k = after(k)) {
        const alora_stats before = ours->stats();
        const int32_t     status = failing(k, reached, [&] { return call(*ours); });
        CHECK(reached || status >= 0);
        if (status < 0) {
            ++n_failed;
            // upstream's reader does not say why it failed
            CHECK(status == ALORA_ERR_MEMORY || status == ALORA_ERR_FORMAT);
            CHECK(alora_last_error()[0] != '\0');
            check_same(ours->stats(), before);
        }
        check_base(*ours, expected);
        if (status >= 0) {
            ours = prepare();  // it did without
        }
    }
    CHECK(n_failed > at_least);
}

static std::unique_ptr<context> with_adapters(const tiny_llama & base, int n) {
    auto              ours = std::make_unique<context>(base, GGML_TYPE_F16, nullptr, nullptr, 0, 1);
    const std::string adapter = tiny_llama::adapter(2);
    for (int i = 0; i < n; ++i) {
        CHECK(alora_adapter_add(*ours, adapter.data(), adapter.size()) == i + 1);
    }
    return ours;
}

static void test_adding(const tiny_llama & base) {
    const std::string linear    = tiny_llama::adapter(3);
    const std::string embedding = tiny_llama::adapter(3, true);
    for (const int n : { 0, 1, 4 }) {  // the first; one that fits; one for which the bank grows
        test_failing(
                base, [&] { return with_adapters(base, n); },
                [&](context & c) { return alora_adapter_add(c, linear.data(), linear.size()); });
    }
    test_failing(
            base, [&] { return with_adapters(base, 1); },
            [&](context & c) { return alora_adapter_add(c, embedding.data(), embedding.size()); });
}

// A vector with a part at every place.
static int32_t add_vector(context & c) {
    static const float direction[tiny_llama::N_EMBD] = { 0.5f, -0.25f, 1.0f };
    alora_part         parts[6];
    for (int32_t i = 0; i < 6; ++i) {  // the hooks of two layers
        parts[i] = { i / 3, i % 3, ALORA_EDIT_ADD, 1, 1.0f, direction };
    }
    return alora_vector_add(c, parts, 6, tiny_llama::N_EMBD);
}

static void test_adding_vectors(const tiny_llama & base) {
    test_failing(base, [&] { return with_adapters(base, 1); }, add_vector);
    test_failing(
            base, [&] { return with_adapters(base, 1); },
            [&](context & c) {
                const alora_slot slots[]  = { 1, 1 };
                const float      scales[] = { 1.0f, 1.0f };
                return alora_combine(c, 2, slots, scales);
            },
            2);
}

static void test_making_room(const tiny_llama & base) {
    test_failing(
            base, [&] { return with_adapters(base, 1); },
            [&](context & c) { return alora_bank_reserve(c, 9, 32); });
}

static float difference(const std::vector<float> & some, const std::vector<float> & others) {
    float most = 0.0f;
    for (size_t i = 0; i < some.size(); ++i) {
        most = std::max(most, std::fabs(some[i] - others[i]));
    }
    return most;
}

// A batch that fails leaves no cells, and decoded again has the bits of one that never did; also where
// the context has to reserve first.
static void test_decoding(const tiny_llama & base, bool reserves, bool steered) {
    const auto expected = of_the_base(base);
    const auto batch    = reading(9, 0, 6);
    const auto prepare  = [&] {
        auto ours = with_adapters(base, 2);
        CHECK(alora_activate(*ours, 0, 4, 1, 1.0f) == ALORA_OK);
        ours->decode(reading(6));
        if (steered) {
            const alora_slot slots[]  = { 1, add_vector(*ours) };
            const float      scales[] = { 1.0f, 1.0f };
            const alora_slot both     = alora_combine(*ours, 2, slots, scales);
            CHECK(alora_activate(*ours, 0, 6, both, 1.0f) == ALORA_OK);
        }
        if (reserves) {
            llama_set_embeddings(*ours, true);
            llama_set_embeddings(*ours, false);
        }
        return ours;
    };
    auto alone = prepare();
    alone->decode(batch);
    const auto adapted = alone->logits(8);

    int64_t n_failed  = 0;
    int64_t n_without = 0;
    bool    reached   = true;
    for (int64_t k = 1; reached; k = after(k)) {
        auto          ours   = prepare();
        const int32_t status = failing(k, reached, [&] { return ours->try_decode(batch); });
        CHECK(reached || status == 0);
        if (status != 0) {
            ++n_failed;
            CHECK(status == -2);
            CHECK(llama_memory_seq_pos_max(ours->memory(), 0) == 5);
            check_base(*ours, expected);
            ours->decode(batch);
        }
        // a layer's attention without memory of its own is upstream's, which sums V in F16
        const bool as_alone = ours->stats().n_attention == alone->stats().n_attention;
        CHECK(difference(ours->logits(8), adapted) <= (as_alone ? 0.0f : 0.02f));
        n_without += !as_alone;
    }
    CHECK(n_failed > 20 && n_without < n_failed);
}

static void test_encoding() {
    const tiny_llama  base("llada");
    const std::string adapter = tiny_llama::adapter(2, false, "llada");
    const auto        batch   = reading(9);
    context           ours(base, GGML_TYPE_F16, nullptr, nullptr, 0, 1);
    llama_set_causal_attn(ours, true);
    CHECK(alora_adapter_add(ours, adapter.data(), adapter.size()) == 1);
    CHECK(alora_activate(ours, 0, 4, 1, 1.0f) == ALORA_OK);
    CHECK(ours.try_encode(batch) == 0);
    const auto expected = ours.logits(8);

    int64_t n_failed = 0;
    bool    reached  = true;
    for (int64_t k = 1; reached; k = after(k)) {
        const int32_t status = failing(k, reached, [&] { return ours.try_encode(batch); });
        CHECK(status == 0 || (reached && status == -2));
        CHECK(alora_access::is_causal(ours));
        n_failed += status != 0;
        CHECK(ours.try_encode(batch) == 0);
        CHECK(ours.logits(8) == expected);
    }
    CHECK(n_failed > 20);
}

#if CAN_LIMIT
// The same with a limit on the process's memory, which upstream's unchecked allocations meet as well.
static void test_limited(const tiny_llama & base) {
    const auto        expected = of_the_base(base);
    const std::string adapter  = tiny_llama::adapter(3);
    int               n_failed = 0;
    for (size_t room = 0; room <= (size_t) 96 << 20; room += (size_t) 2 << 20) {
        auto        ours  = with_adapters(base, 0);
        const pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            alarm(60);
            size_t pages = 0;
            FILE * statm = fopen("/proc/self/statm", "r");
            CHECK(statm && fscanf(statm, "%zu", &pages) == 1);
            fclose(statm);
            rlimit limit;
            CHECK(getrlimit(RLIMIT_AS, &limit) == 0);
            const rlim_t before = limit.rlim_cur;
            limit.rlim_cur      = pages * sysconf(_SC_PAGESIZE) + room;
            CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
            const int32_t status = alora_adapter_add(*ours, adapter.data(), adapter.size());
            CHECK(status == 1 || status == ALORA_ERR_MEMORY);
            const int32_t decoded = ours->try_decode(reading(12, 1));
            CHECK(decoded == 0 || decoded == -2);
            limit.rlim_cur = before;
            CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
            CHECK(llama_memory_seq_rm(ours->memory(), 1, -1, -1));
            check_base(*ours, expected);
            _exit(status == 1 ? 0 : 2);
        }
        int result = 0;
        CHECK(waitpid(child, &result, 0) == child);
        CHECK(WIFEXITED(result) && (WEXITSTATUS(result) == 0 || WEXITSTATUS(result) == 2));
        n_failed += WEXITSTATUS(result) == 2;
    }
    CHECK(n_failed > 0);
}
#endif

#endif

int main() {
#if CAN_FAIL
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    forget_variable("ALORA_CPU_PATH");
    llama_backend_init();
    const tiny_llama base;
#if CAN_LIMIT
    test_limited(base);
#endif
    test_adding(base);
    test_making_room(base);
    test_adding_vectors(base);
    test_decoding(base, false, false);
    test_decoding(base, true, false);
    test_decoding(base, false, true);
    test_encoding();
#else
    std::printf(
            "skipped: allocations can be made to fail with glibc and mingw-w64, not under TSan\n");
#endif
    return 0;
}
