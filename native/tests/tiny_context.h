// A context on the tiny Llama, and what it decodes.
#pragma once

#include "alora.h"
#include "llama-context.h"
#include "tiny_llama.h"

// Upstream's context calls it a friend.
struct alora_access {
    static llm_graph_result *   reserved(llama_context * ctx) { return ctx->get_gf_res_reserve(); }
    static llm_graph_result *   last(llama_context * ctx) { return ctx->gf_res_prev_active; }
    static ggml_backend_sched_t sched(llama_context * ctx) { return ctx->sched.get(); }
    static bool                 is_causal(llama_context * ctx) { return ctx->cparams.causal_attn; }
};

struct token {
    llama_token  id;
    llama_pos    pos;
    llama_seq_id seq;
    bool         output = true;
};

struct context {
    llama_context_ptr ctx;

    explicit context(
            const tiny_llama & base, ggml_type type = GGML_TYPE_F16,
            ggml_backend_sched_eval_callback callback = nullptr, void * data = nullptr,
            uint32_t n_outputs_max = 0, int32_t n_threads = 2) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx                = 512;
        params.n_batch = params.n_ubatch = 64;
        params.n_seq_max                 = 4;
        params.kv_unified                = true;
        params.n_threads = params.n_threads_batch = n_threads;
        params.type_k = params.type_v = type;
        params.flash_attn_type        = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        params.cb_eval                = callback;
        params.cb_eval_user_data      = data;
        params.no_perf                = false;
        params.n_outputs_max          = n_outputs_max;
        ctx.reset(llama_init_from_model(base.model.get(), params));
        CHECK(ctx);
    }

    operator llama_context *() const { return ctx.get(); }

    int32_t try_decode(const std::vector<token> & tokens) { return call(llama_decode, tokens); }
    int32_t try_encode(const std::vector<token> & tokens) { return call(llama_encode, tokens); }

    void decode(const std::vector<token> & tokens) { CHECK(try_decode(tokens) == 0); }

    std::vector<float> logits(int32_t i) {
        const float * row = llama_get_logits_ith(ctx.get(), i);
        CHECK(row);
        return { row, row + tiny_llama::N_VOCAB };
    }

    alora_stats stats() const {
        alora_stats stats;
        CHECK(alora_stats_get(ctx.get(), &stats) == ALORA_OK);
        return stats;
    }

    llama_memory_t memory() const { return llama_get_memory(ctx.get()); }
    ggml_cgraph *  graph() const { return alora_access::last(ctx.get())->get_gf(); }

  private:
    int32_t call(
            int32_t (*function)(llama_context *, llama_batch), const std::vector<token> & tokens) {
        llama_batch batch = llama_batch_init((int32_t) tokens.size(), 0, 1);
        batch.n_tokens    = (int32_t) tokens.size();
        for (size_t i = 0; i < tokens.size(); ++i) {
            batch.token[i]     = tokens[i].id;
            batch.pos[i]       = tokens[i].pos;
            batch.n_seq_id[i]  = 1;
            batch.seq_id[i][0] = tokens[i].seq;
            batch.logits[i]    = tokens[i].output;
        }
        const int32_t status = function(ctx.get(), batch);
        llama_batch_free(batch);
        return status;
    }
};

inline std::vector<token> reading(int n, llama_seq_id seq = 0, llama_pos first = 0) {
    std::vector<token> tokens;
    for (int i = 0; i < n; ++i) {
        tokens.push_back({ (7 * (first + i) + 3) % 96, first + i, seq, i + 1 == n });
    }
    return tokens;
}
