// alora_last_error() is of the thread's last call, whether it succeeded, failed with a sentence, or failed
// where upstream has none: nobody is told what an earlier call did wrong.
#include "alora.h"
#include "tiny_context.h"

#include <functional>
#include <new>
#include <stdexcept>
#include <thread>

static bool says_nothing() {
    return alora_last_error()[0] == '\0';
}

static void fail(context & c) {
    CHECK(alora_activate(c, 0, 0, 77, 1.0f) == ALORA_ERR_ARGUMENT);
    CHECK(strstr(alora_last_error(), "slot 77 holds no adapter"));
}

static void test_upstream_calls(const tiny_llama & base, const tiny_llama & encoding) {
    context ours(base, GGML_TYPE_F16, nullptr, nullptr, 0, 1);
    fail(ours);
    ours.decode(reading(3));
    CHECK(says_nothing());

    fail(ours);
    CHECK(ours.try_decode(reading(3)) == -1);  // positions that are there already
    CHECK(says_nothing());

    ours.decode(reading(61, 0, 3));
    for (llama_pos first = 64; first < 512; first += 64) {
        ours.decode(reading(64, 0, first));
    }
    fail(ours);
    CHECK(ours.try_decode({ { 5, 0, 1 } }) == 1);  // no cell is free
    CHECK(says_nothing());

    context other(encoding, GGML_TYPE_F16, nullptr, nullptr, 0, 1);
    fail(other);
    CHECK(other.try_encode(reading(3)) == 0);
    CHECK(says_nothing());
    fail(other);
    CHECK(other.try_encode({}) == -1);
    CHECK(says_nothing());
}

static void test_ours(const tiny_llama & base) {
    context           ours(base, GGML_TYPE_F16, nullptr, nullptr, 0, 1);
    const std::string adapter = tiny_llama::adapter(2);
    alora_stats       stats;
    llama_seq_id      seq   = 0;
    llama_pos         begin = 0, end = 3;
    bool              finite = false;

    const std::vector<float> direction(tiny_llama::N_EMBD, 0.1f);
    const alora_part part     = { 1, ALORA_HOOK_FFN, ALORA_EDIT_ADD, 1, 1.0f, direction.data() };
    const alora_slot slots[]  = { 1, ALORA_FIRST_COMPOSITE };
    const float      scales[] = { 1.0f, 0.5f };
    ours.decode(reading(3));
    const std::vector<std::function<int32_t()>> calls = {
        [&] { return alora_bank_reserve(ours, 2, 8); },
        [&] { return alora_adapter_add(ours, adapter.data(), adapter.size()); },
        [&] { return alora_vector_add(ours, &part, 1, tiny_llama::N_EMBD); },
        [&] { return alora_combine(ours, 2, slots, scales); },
        [&] { return alora_activate(ours, 0, 0, 1, 1.0f); },
        [&] { return alora_slot_at(ours, 0, 0, nullptr); },
        [&] { return alora_deactivate(ours, -1); },
        [&] { return alora_finite_cells(ours, 1, &seq, &begin, &end, &finite); },
        [&] { return alora_finite_batch(ours, llama_batch{}); },
        [&] { return alora_clear_free_cells(ours); },
        [&] { return alora_keep_cells(ours); },
        [&] { return alora_interrupt(ours, false); },
        [&] { return alora_stats_get(ours, &stats); },
        [&] { return alora_adapter_remove(ours, slots[1] + 1); },
        [&] { return alora_adapter_remove(ours, 1); },
    };
    for (const auto & call : calls) {
        fail(ours);
        CHECK(call() >= 0);
        CHECK(says_nothing());
    }
}

// Upstream aborts where a vocabulary has no texts.
static void test_no_texts(const tiny_llama & base) {
    context             ours(base, GGML_TYPE_F16, nullptr, nullptr, 0, 1);
    const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(ours));
    llama_token         token = 0;
    int32_t             n     = 0;
    CHECK(llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE);
    CHECK(alora_tokenize(vocab, "a", 1, &token, 1, false, false, &n) == ALORA_ERR_ARGUMENT);
    CHECK(alora_tokenize(nullptr, "a", 1, &token, 1, false, false, &n) == ALORA_ERR_ARGUMENT);
    CHECK(alora_token_attributes(vocab, &n) == ALORA_ERR_ARGUMENT);
    CHECK(alora_token_attributes(vocab, nullptr) == ALORA_ERR_ARGUMENT);
    CHECK(!says_nothing());
}

// What a callback throws, from another library through a third one, leaves llama_decode() as a sentence.
static void test_thrown(const tiny_llama & base) {
    static const auto callback = [](ggml_tensor *, bool, void * thrown) -> bool {
        switch (*(const int *) thrown) {
            case 1:
                throw std::bad_alloc();
            case 2:
                throw std::runtime_error("what a callback threw");
            default:
                return false;
        }
    };
    int     thrown = 0;
    context ours(base, GGML_TYPE_F16, callback, &thrown, 0, 1);
    for (const char * said : { "out of memory", "what a callback threw" }) {
        ++thrown;
        CHECK(ours.try_decode(reading(3)) == -2);
        CHECK(std::string(alora_last_error()) == said);
        CHECK(llama_memory_seq_pos_max(ours.memory(), 0) == -1);
    }
    thrown = 0;
    ours.decode(reading(3));
    CHECK(says_nothing());
}

static void test_of_a_thread(const tiny_llama & base) {
    context ours(base, GGML_TYPE_F16, nullptr, nullptr, 0, 1);
    fail(ours);
    std::thread([&] {
        CHECK(says_nothing());
        ours.decode(reading(3));
    }).join();
    CHECK(!says_nothing());
}

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    const tiny_llama base, encoding("llada"), no_texts("glm4");
    test_upstream_calls(base, encoding);
    test_ours(base);
    test_no_texts(no_texts);
    test_of_a_thread(base);
    test_thrown(base);
    return 0;
}
