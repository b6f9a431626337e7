// What we read and change of upstream's context.
#pragma once

#include "alora-attention.h"
#include "alora-bank.h"
#include "alora-steer.h"
#include "llama-context.h"
#include "llama-model.h"

// The one friend that it has.
struct alora_access {
    static alora_bank & bank(llama_context * ctx) { return *ctx->cparams.alora.bank; }

    static const alora_bank & bank(const llama_context * ctx) { return *ctx->cparams.alora.bank; }

    static uint32_t n_seq_max(const llama_context * ctx) {
        // a unified cache has every sequence, though a batch takes those below n_seq_max alone
        return ctx->cparams.kv_unified ? LLAMA_MAX_SEQ : ctx->cparams.n_seq_max;
    }

    static uint32_t n_ctx_seq(const llama_context * ctx) { return ctx->cparams.n_ctx_seq; }

    // F32 cells: upstream's flash attention converts them
    static bool reads_as_f16(const llama_context * ctx) { return ctx->cparams.flash_attn; }

    static bool & is_causal(llama_context * ctx) { return ctx->cparams.causal_attn; }

    static bool has_encoder(const llama_context * ctx) {
        return llama_model_has_encoder(&ctx->model);
    }

    static bool is_divided(const llama_context * ctx) {
        return ctx->model.split_mode() == LLAMA_SPLIT_MODE_TENSOR;
    }

    // Makes the bank's interrupts end a computation, beside the callback that the caller may have set.
    static void install_interrupts(llama_context * ctx);

    // Reserves for the bank as it is, or throws an alora_error; the next llama_decode() then tries again.
    static void reserve(llama_context * ctx);

    // Where the next decode reserves: throws if there is no memory for what upstream does not check.
    static void expect_memory_to_reserve(const llama_context * ctx);

    static void reserve_before_decoding(llama_context * ctx) { ctx->sched_need_reserve = true; }

    static int64_t n_nodes(const llama_context * ctx) {
        return ctx->gf_res_prev_active ? ggml_graph_n_nodes(ctx->gf_res_prev_active->get_gf()) : 0;
    }

    static int32_t n_attention(const llama_context * ctx) {
        int32_t n = 0;
        for (int64_t i = 0; i < n_nodes(ctx); ++i) {
            n += alora_attention::is_node(
                    *ggml_graph_node(ctx->gf_res_prev_active->get_gf(), (int) i));
        }
        return n;
    }

    static int32_t n_steered(const llama_context * ctx) {
        int32_t n = 0;
        for (int64_t i = 0; i < n_nodes(ctx); ++i) {
            n += alora_steer::is_node(*ggml_graph_node(ctx->gf_res_prev_active->get_gf(), (int) i));
        }
        return n;
    }

    static int64_t compute_bytes(const llama_context * ctx) {
        int64_t n = 0;
        for (ggml_backend_t backend : ctx->backend_ptrs) {
            n += ctx->sched ? ggml_backend_sched_get_buffer_size(ctx->sched.get(), backend) : 0;
        }
        return n;
    }
};
