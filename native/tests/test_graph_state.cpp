// The inputs of a graph: a table of experts for each number of them, and scales for each alpha/rank.
#include "alora-graph-state.h"
#include "backend.h"
#include "llama-batch.h"
#include "tiny_llama.h"

template <typename T> static std::vector<T> values_of(const ggml_tensor * t) {
    std::vector<T> values(ggml_nelements(t));
    ggml_backend_tensor_get(t, values.data(), 0, ggml_nbytes(t));
    return values;
}

// Rows of slots 1, 0 and 2, at scales 1, any and 0.5.
static void test_inputs(const tiny_llama & base) {
    auto bank = std::make_shared<alora_bank>(*base.model);
    bank->activations.set(0, 0, { 1, 1.0f });
    bank->activations.set(2, 0, { 2, 0.5f });
    alora_graph_state state(bank, {}, 3, 3);

    ggml_context_ptr ctx(ggml_init({ 1 << 16, nullptr, /*.no_alloc =*/true }));
    alora_rows &     rows    = state.rows_for(3);
    ggml_tensor *    many    = state.expert(ctx.get(), rows, 4);
    ggml_tensor *    few     = state.expert(ctx.get(), rows, 2);
    alora_target     plain   = {};
    alora_target     reduced = {};
    plain.slot_scale         = { 1.0f, 1.0f, 1.0f };
    reduced.slot_scale       = { 1.0f, 0.25f, 8.0f };
    ggml_tensor * of_plain   = state.scales(ctx.get(), rows, plain);
    ggml_tensor * of_reduced = state.scales(ctx.get(), rows, reduced);
    CHECK(few != many && few == state.expert(ctx.get(), rows, 2));
    CHECK(of_plain != of_reduced && of_plain == state.scales(ctx.get(), rows, plain));

    const cpu_backend       cpu(1);
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), cpu.backend.get()));
    CHECK(buffer);

    llama_seq_id   seqs[]    = { 0, 1, 2 };
    llama_seq_id * seq_ids[] = { seqs, seqs + 1, seqs + 2 };
    llama_pos      pos[]     = { 5, 5, 5 };
    int8_t         output[]  = { 1, 1, 1 };
    llama_ubatch   ubatch    = {};
    ubatch.n_tokens          = 3;
    ubatch.seq_id            = seq_ids;
    ubatch.pos               = pos;
    ubatch.output            = output;
    state.set_input(&ubatch);

    CHECK(values_of<int32_t>(many) ==
            std::vector<int32_t>({ 4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11 }));
    CHECK(values_of<int32_t>(few) == std::vector<int32_t>({ 2, 3, 0, 1, 4, 5 }));
    CHECK(values_of<float>(of_plain) == std::vector<float>({ 1.0f, 0.0f, 0.5f }));
    CHECK(values_of<float>(of_reduced) == std::vector<float>({ 0.25f, 0.0f, 4.0f }));
}

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    const tiny_llama base;
    test_inputs(base);
    return 0;
}
