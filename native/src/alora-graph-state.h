// What lives as long as a graph: the inputs that say which row uses which slot, filled from the batch's
// own sequence ids and positions whenever the graph is computed, and what our nodes point into.
#pragma once

#include "alora-attention.h"
#include "alora-bank.h"
#include "alora-fused.h"
#include "alora-plan.h"
#include "alora-steer.h"
#include "llama-graph.h"

#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

// The rows that a product has: one per token of the batch or, in the last layer, per output.
struct alora_rows {
    int64_t        n     = 0;
    ggml_tensor *  slots = nullptr;  // I32 [1, n]
    alora_segments segments;         // the same for our own nodes, in host memory
    alora_steered  steered;          // and which vectors

    // F32 [1, 1, n], for targets with these slot_scale: mostly one
    std::map<std::vector<float>, ggml_tensor *> scales;

    // I32 [1, n_expert, n] for a number of experts: slot*n_expert + e for each expert e
    std::map<int64_t, ggml_tensor *> expert;
};

class alora_graph_state : public llm_graph_input_i {
  public:
    alora_graph_state(
            std::shared_ptr<alora_bank> bank, const alora_plan & plan, int64_t n_tokens,
            int64_t n_outputs) :
        bank(std::move(bank)), plan(plan) {
        tokens.n  = n_tokens;
        outputs.n = n_outputs;
    }

    // That of a graph, which keeps it among its inputs.
    static alora_graph_state & of(const llm_graph_context & graph);

    void set_input(const llama_ubatch * ubatch) override;

    // llm_graph_params::allow_reuse() has compared the plan and the numbers of rows
    bool can_reuse(const llm_graph_params &) override { return true; }

    // The rows of a product with n of them. Where both have n, every token is an output, in order.
    alora_rows & rows_for(int64_t n) { return n == tokens.n ? tokens : outputs; }

    ggml_tensor * slots(ggml_context * ctx, alora_rows & rows) {
        return rows.slots ? rows.slots
                          : rows.slots = new_input(ctx, GGML_TYPE_I32, 1, rows.n, 1, "alora_slots");
    }

    ggml_tensor * scales(ggml_context * ctx, alora_rows & rows, const alora_target & target) {
        ggml_tensor *& t = rows.scales[target.slot_scale];
        return t ? t : t = new_input(ctx, GGML_TYPE_F32, 1, 1, rows.n, "alora_scales");
    }

    ggml_tensor * expert(ggml_context * ctx, alora_rows & rows, int64_t n_expert) {
        ggml_tensor *& t = rows.expert[n_expert];
        return t ? t : t = new_input(ctx, GGML_TYPE_I32, 1, n_expert, rows.n, "alora_experts");
    }

    // I32 [n_tokens]: the row slot*n_vocab + token of the embedding's stacked A
    ggml_tensor * embedding(ggml_context * ctx, int64_t vocab) {
        n_vocab = vocab;
        return embd_rows ? embd_rows
                         : embd_rows =
                                   new_input(ctx, GGML_TYPE_I32, tokens.n, 1, 1, "alora_embd_rows");
    }

    // x with `n` rows of zeros behind its own, once for all products that read it
    ggml_tensor * padded(ggml_context * ctx, ggml_tensor * x, int64_t n) {
        ggml_tensor *& wide = with_padding[x];
        return wide ? wide : wide = ggml_pad(ctx, x, 0, (int) n, 0, 0);
    }

    alora_fused     fused;      // the graph's fused products
    alora_attention attention;  // its attention
    alora_steer     steer;      // and its edits of the stream

  private:
    static ggml_tensor * new_input(
            ggml_context * ctx, ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2,
            const char * name) {
        ggml_tensor * t = ggml_new_tensor_3d(ctx, type, ne0, ne1, ne2);
        ggml_set_input(t);
        ggml_set_name(t, name);
        return t;
    }

    static void fill(alora_rows & rows, const std::vector<alora_choice> & choices);

    std::shared_ptr<alora_bank> bank;
    alora_plan                  plan;
    alora_rows                  tokens;
    alora_rows                  outputs;
    ggml_tensor *               embd_rows = nullptr;
    int64_t                     n_vocab   = 0;

    std::unordered_map<const ggml_tensor *, ggml_tensor *> with_padding;
};
