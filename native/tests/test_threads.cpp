// Four threads compute while another interrupts them, between nodes of every kind; adapters come, go and
// make the bank grow between batches; and several contexts of one model do all that at once, while another
// thread reads texts. What is decoded has the same bits as without any of it.
#include "alora.h"
#include "tiny_context.h"

#include <atomic>
#include <chrono>
#include <thread>

static constexpr int32_t N_THREADS = 4;
static constexpr int64_t NODE_STEP = SANITIZED ? 7 : 1;
static constexpr int     N_BATCHES = SANITIZED ? 40 : 200;

// Ends the computation before node number `at`, counted from `begin()` on.
struct stopping {
    std::atomic<int64_t> at{ -1 };

    static bool callback(void * data) {
        auto & self = *(stopping *) data;
        return self.at.load() >= 0 && self.at.fetch_sub(1) == 0;
    }
};

static std::unique_ptr<context> new_context(const tiny_llama & base, int32_t n = N_THREADS) {
    return std::make_unique<context>(base, GGML_TYPE_F16, nullptr, nullptr, 0, n);
}

static alora_slot add(context & c, uint32_t seed) {
    const std::string adapter = tiny_llama::adapter(seed);
    const alora_slot  slot    = alora_adapter_add(c, adapter.data(), adapter.size());
    CHECK(slot > 0);
    return slot;
}

// Tokens of the base, and of two adapters, behind what test_*() read.
static std::vector<token> mixed() {
    return { { 5, 8, 0 }, { 6, 9, 0 }, { 7, 8, 1 }, { 8, 8, 2 }, { 9, 9, 2 } };
}

static void prepare(context & c) {
    for (llama_seq_id seq = 0; seq < 3; ++seq) {
        c.decode(reading(8, seq));
    }
    CHECK(alora_activate(c, 1, 8, add(c, 2), 1.0f) == ALORA_OK);
    CHECK(alora_activate(c, 2, 8, add(c, 3), 0.5f) == ALORA_OK);
}

static std::vector<float> logits_of(context & c) {
    std::vector<float> all;
    for (int32_t i = 0; i < 5; ++i) {
        const auto row = c.logits(i);
        all.insert(all.end(), row.begin(), row.end());
    }
    return all;
}

// Stopped before each of its nodes in turn, by the caller's own callback, which interrupts leave alone.
static void test_stopped_amid_nodes(const tiny_llama & base) {
    auto ours = new_context(base);
    prepare(*ours);
    ours->decode(mixed());
    const auto expected = logits_of(*ours);
    const auto forget   = [&] {
        for (llama_seq_id seq = 0; seq < 3; ++seq) {
            CHECK(llama_memory_seq_rm(ours->memory(), seq, 8, -1));
        }
    };

    CHECK(alora_interrupt(*ours, false) == ALORA_OK);
    stopping stop;
    llama_set_abort_callback(*ours, stopping::callback, &stop);
    int n_stopped = 0;
    for (int64_t node = 0;; node += NODE_STEP) {
        forget();
        stop.at              = node;
        const int32_t status = ours->try_decode(mixed());
        stop.at              = -1;
        if (status == 0) {
            CHECK(logits_of(*ours) == expected);
            break;
        }
        CHECK(status == 2 && llama_memory_seq_pos_max(ours->memory(), 2) == 7);
        ++n_stopped;
        ours->decode(mixed());
        CHECK(logits_of(*ours) == expected);
    }
    CHECK(n_stopped * NODE_STEP > 40);

    // and the interrupt is not disarmed by the caller's
    forget();
    CHECK(alora_interrupt(*ours, true) == ALORA_OK);
    CHECK(ours->try_decode(mixed()) == 2);
    CHECK(alora_interrupt(*ours, false) == ALORA_OK);
    ours->decode(mixed());
    CHECK(logits_of(*ours) == expected);
}

static void test_interrupted_from_a_thread(const tiny_llama & base) {
    auto ours = new_context(base);
    prepare(*ours);
    ours->decode(mixed());
    const auto expected = logits_of(*ours);
    CHECK(alora_interrupt(*ours, false) == ALORA_OK);

    std::atomic<bool> ends{ false };
    std::thread       other([&] {
        for (int i = 0; !ends; ++i) {
            CHECK(alora_interrupt(*ours, i % 3 == 0) == ALORA_OK);
            std::this_thread::sleep_for(std::chrono::microseconds(50 + 37 * (i % 11)));
        }
        CHECK(alora_interrupt(*ours, false) == ALORA_OK);
    });
    for (int i = 0; i < N_BATCHES; ++i) {
        for (llama_seq_id seq = 0; seq < 3; ++seq) {
            CHECK(llama_memory_seq_rm(ours->memory(), seq, 8, -1));
        }
        const int32_t status = ours->try_decode(mixed());
        CHECK(status == 0 || status == 2);
        CHECK(status == 2 || logits_of(*ours) == expected);
    }
    ends = true;
    other.join();
}

// Slots are freed and filled again, and the bank grows in slots, rank and targets.
static void test_adding_and_removing(const tiny_llama & base) {
    auto ours = new_context(base);
    prepare(*ours);
    ours->decode(mixed());
    const auto expected = logits_of(*ours);

    std::vector<alora_slot> slots;
    for (uint32_t i = 0; i < 12; ++i) {
        slots.push_back(add(*ours, 10 + i));
        if (i % 3 == 2) {
            CHECK(alora_adapter_remove(*ours, slots.front()) == ALORA_OK);
            slots.erase(slots.begin());
        }
        if (i == 5) {
            CHECK(alora_bank_reserve(*ours, 12, 24) == ALORA_OK);
        }
        if (i == 8) {
            const std::string adapter = tiny_llama::adapter(5, true);
            CHECK(alora_adapter_add(*ours, adapter.data(), adapter.size()) > 0);
        }
        for (llama_seq_id seq = 0; seq < 3; ++seq) {
            CHECK(llama_memory_seq_rm(ours->memory(), seq, 8, -1));
        }
        ours->decode(mixed());
        CHECK(logits_of(*ours) == expected);
    }
    CHECK(alora_adapter_remove(*ours, 1) == ALORA_ERR_BUSY);
}

static std::vector<llama_token> tokenized(const tiny_llama & base, const std::string & text) {
    std::vector<llama_token> tokens(text.size() + 2);
    const int32_t            n = llama_tokenize(
            llama_model_get_vocab(base.model.get()), text.data(), (int32_t) text.size(),
            tokens.data(), (int32_t) tokens.size(), true, true);
    CHECK(n > 0);
    tokens.resize(n);
    return tokens;
}

static void test_contexts_of_one_model(const tiny_llama & base) {
    const std::string text  = "be the reader of it all</s>ae be";
    const auto        words = tokenized(base, text);
    CHECK(words.size() < text.size());
    auto alone = new_context(base, 1);
    prepare(*alone);
    alone->decode(mixed());
    const auto expected = logits_of(*alone);

    std::atomic<bool>        ends{ false };
    std::thread              reader([&] {
        while (!ends) {
            CHECK(tokenized(base, text) == words);
        }
    });
    std::vector<std::thread> threads;
    for (uint32_t i = 0; i < 3; ++i) {
        threads.emplace_back([&, i] {
            auto ours = new_context(base, 1);
            prepare(*ours);
            for (uint32_t k = 0; k < 6; ++k) {
                const alora_slot slot = add(*ours, 10 * i + k);
                for (llama_seq_id seq = 0; seq < 3; ++seq) {
                    CHECK(llama_memory_seq_rm(ours->memory(), seq, 8, -1));
                }
                ours->decode(mixed());
                CHECK(logits_of(*ours) == expected);
                if (k % 2 == 0) {
                    CHECK(alora_adapter_remove(*ours, slot) == ALORA_OK);
                }
            }
        });
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    ends = true;
    reader.join();
}

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    forget_variable("ALORA_CPU_PATH");
    llama_backend_init();
    const tiny_llama base;
    test_stopped_amid_nodes(base);
    test_interrupted_from_a_thread(base);
    test_adding_and_removing(base);
    test_contexts_of_one_model(base);
    return 0;
}
