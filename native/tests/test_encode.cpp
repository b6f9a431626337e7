// Models without a cache: llama_encode(), and llama_decode(), which for them is the same, with adapters
// chosen token by token.
#include "alora.h"
#include "tiny_context.h"

#include <algorithm>
#include <cmath>

static constexpr int N = 9;  // tokens of a sequence

// Sequence 0 is the base's, 1 and 2 have an adapter each from the start.
static std::vector<token> three_sequences() {
    std::vector<token> tokens;
    for (int i = 0; i < N; ++i) {
        for (llama_seq_id seq = 0; seq < 3; ++seq) {
            tokens.push_back({ (7 * i + 3 * seq + 3) % 96, i, seq });
        }
    }
    return tokens;
}

static std::vector<float> rows_of(context & c, int n, int first = 0, int step = 1) {
    std::vector<float> all;
    for (int i = 0; i < n; ++i) {
        const auto row = c.logits(first + i * step);
        all.insert(all.end(), row.begin(), row.end());
    }
    return all;
}

static float difference(const std::vector<float> & a, const std::vector<float> & b) {
    CHECK(a.size() == b.size());
    float most = 0.0f, largest = 0.0f;
    for (size_t i = 0; i < a.size(); ++i) {
        most    = std::max(most, std::fabs(a[i] - b[i]));
        largest = std::max(largest, std::fabs(b[i]));
    }
    return most / largest;
}

static alora_slot add(context & c, const std::string & bytes) {
    const alora_slot slot = alora_adapter_add(c, bytes.data(), bytes.size());
    CHECK(slot > 0);
    return slot;
}

// What upstream's own LoRA makes of sequence `seq` of three_sequences().
static std::vector<float> by_stock(const tiny_llama & base, const std::string & bytes, int seq) {
    const auto path = std::filesystem::temp_directory_path() /
                      ("alora-stock-" + std::to_string(std::random_device()()) + ".gguf");
    FILE *     file = fopen(path.string().c_str(), "wb");
    CHECK(file && fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
    fclose(file);
    llama_adapter_lora * lora = llama_adapter_lora_init(base.model.get(), path.string().c_str());
    std::filesystem::remove(path);
    CHECK(lora);

    context stock(base);
    float   scale = 1.0f;
    CHECK(llama_set_adapters_lora(stock, &lora, 1, &scale) == 0);
    std::vector<token> tokens;
    for (const token & t : three_sequences()) {
        if (t.seq == seq) {
            tokens.push_back(t);
        }
    }
    CHECK(stock.try_encode(tokens) == 0);
    return rows_of(stock, N);
}

static void test_each_token_has_its_own(const tiny_llama & base) {
    const std::string one = tiny_llama::adapter(2, false, "llada");
    const std::string two = tiny_llama::adapter(3, false, "llada");

    context plain(base);
    CHECK(plain.try_encode(three_sequences()) == 0);
    const auto bits_of_the_base = rows_of(plain, N, 0, 3);

    context ours(base);
    CHECK(alora_activate(ours, 1, 0, add(ours, one), 1.0f) == ALORA_OK);
    CHECK(alora_activate(ours, 2, 0, add(ours, two), 1.0f) == ALORA_OK);
    for (const bool decode : { false, true }) {
        CHECK((decode ? ours.try_decode(three_sequences()) : ours.try_encode(three_sequences())) ==
                0);
        CHECK(rows_of(ours, N, 0, 3) == bits_of_the_base);
        CHECK(difference(rows_of(ours, N, 1, 3), by_stock(base, one, 1)) < 5e-3f);
        CHECK(difference(rows_of(ours, N, 2, 3), by_stock(base, two, 2)) < 5e-3f);
        CHECK(difference(rows_of(ours, N, 1, 3), rows_of(plain, N, 1, 3)) > 0.1f);
    }
    CHECK(ours.stats().n_skipped == 0);
}

// A token of two sequences has one adapter or is refused, where upstream would take the first's.
static void test_shared_tokens(const tiny_llama & base) {
    context          ours(base);
    const alora_slot slot = add(ours, tiny_llama::adapter(2, false, "llada"));

    const auto shared = [&] {
        llama_batch batch   = llama_batch_init(1, 0, 2);
        batch.n_tokens      = 1;
        batch.token[0]      = 5;
        batch.pos[0]        = 0;
        batch.n_seq_id[0]   = 2;
        batch.seq_id[0][0]  = 0;
        batch.seq_id[0][1]  = 1;
        batch.logits[0]     = true;
        const int32_t first = llama_encode(ours, batch);
        CHECK(llama_decode(ours, batch) == first);
        llama_batch_free(batch);
        return first;
    };
    CHECK(shared() == 0);
    CHECK(alora_activate(ours, 1, 0, slot, 1.0f) == ALORA_OK);
    CHECK(shared() == -1);
    CHECK(strstr(alora_last_error(), "give each its own token"));
    CHECK(alora_activate(ours, 0, 0, slot, 1.0f) == ALORA_OK);
    CHECK(shared() == 0);
}

// Upstream asserts that a batch is computed in one go.
static void test_too_long(const tiny_llama & base) {
    context ours(base);
    for (const bool decode : { false, true }) {
        const auto tokens = reading(65);
        CHECK((decode ? ours.try_decode(tokens) : ours.try_encode(tokens)) == -1);
        CHECK(strstr(alora_last_error(), "65 tokens exceeds n_ubatch = 64"));
        CHECK(ours.try_encode(reading(64)) == 0);
        CHECK(alora_last_error()[0] == '\0');
    }
}

// Without a cache, upstream's graph reads from a null pointer.
static void test_models_with_a_cache() {
    const tiny_llama base;
    context          ours(base);
    CHECK(ours.try_encode(reading(3)) == -1);
    CHECK(strstr(alora_last_error(), "call llama_decode()"));
    ours.decode(reading(3));
}

static void test_interrupted(const tiny_llama & base) {
    context ours(base);
    CHECK(alora_activate(ours, 1, 0, add(ours, tiny_llama::adapter(2, false, "llada")), 1.0f) ==
            ALORA_OK);
    CHECK(ours.try_encode(three_sequences()) == 0);
    const auto expected = rows_of(ours, 3 * N);
    CHECK(alora_interrupt(ours, true) == ALORA_OK);
    CHECK(ours.try_encode(three_sequences()) == 2);
    CHECK(alora_interrupt(ours, false) == ALORA_OK);
    CHECK(ours.try_encode(three_sequences()) == 0);
    CHECK(rows_of(ours, 3 * N) == expected);
}

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    const tiny_llama base("llada");
    test_each_token_has_its_own(base);
    test_shared_tokens(base);
    test_too_long(base);
    test_models_with_a_cache();
    test_interrupted(base);
    return 0;
}
