#include "alora-plan.h"

#include "alora-bank.h"
#include "alora-error.h"
#include "alora-guard.h"
#include "alora-host.h"
#include "ggml-backend.h"
#include "llama-batch.h"
#include "llama-cparams.h"
#include "llama-graph.h"
#include "llama-memory.h"

#include <algorithm>

using shape = alora_plan::shape;

alora_ref alora_ref_new(const llama_model & model) {
    return { std::make_shared<alora_bank>(model), {} };
}

//
// which graph a batch needs
//

alora_choice alora_activation_of(const alora_bank & bank, const llama_ubatch & ubatch, uint32_t i) {
    // alora_check_batch() made sure that all sequences of a token agree
    return bank.activations.at(ubatch.seq_id[i][0], ubatch.pos[i]);
}

static alora_attention_plan attention_of(
        alora_attention_mode mode, bool has_base, bool has_adapted) {
    switch (mode) {
        case ALORA_ATTENTION_STOCK:
            return alora_attention_plan::stock;
        case ALORA_ATTENTION_OURS:
            return alora_attention_plan::ours;
        case ALORA_ATTENTION_UPSTREAM:
            return !has_adapted ? alora_attention_plan::stock
                   : has_base   ? alora_attention_plan::adapted
                                : alora_attention_plan::faster;
        case ALORA_ATTENTION_AUTO:
            break;
    }
    return alora_attention_plan::faster;
}

static alora_plan plan_of(const alora_bank & bank, const llama_ubatch & ubatch) {
    alora_plan plan;
    plan.shown     = bank.shown;
    plan.attention = attention_of(bank.attention, true, false);
    if (bank.activations.empty()) {
        return plan;
    }

    bool has_base  = false;
    bool has_scale = false;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        const alora_choice active = alora_activation_of(bank, ubatch, i);
        const alora_choice choice = bank.vectors.weights_of(active);
        plan.steered |= bank.vectors.steers(active);
        if (choice.slot == 0) {
            has_base = true;
            continue;
        }
        has_scale |= choice.scale != 1.0f;
        if (plan.kind == shape::stock) {
            plan.kind = shape::single;
            plan.slot = choice.slot;
        } else if (plan.slot != choice.slot) {
            plan.kind = shape::mixed;
        }
    }

    if (plan.kind == shape::stock && !plan.steered) {
        return plan;
    }
    plan.generation = bank.generation;
    if (plan.kind == shape::stock) {
        return plan;
    }
    plan.attention = attention_of(bank.attention, has_base, true);
    if (plan.kind == shape::single) {
        plan.scaled = has_scale || bank.scaled(plan.slot);
        // fused products take any slot and scale: one graph serves every slot that changes as much;
        // and a base's A·x is not to be multiplied by 0 afterwards, as it may have overflowed
        if (has_base || bank.fused_throughout(plan.slot)) {
            plan.kind = shape::mixed;
        }
    } else {
        plan.scaled = has_scale || bank.scaled();
    }
    if (plan.kind == shape::mixed) {
        plan.slot   = 0;
        plan.scaled = plan.scaled && !bank.fused_throughout();
    }
    return plan;
}

llama_cparams alora_planned(
        const llama_cparams & cparams, const llama_ubatch & ubatch, bool reserve) {
    llama_cparams planned = cparams;
    alora_bank &  bank    = *cparams.alora.bank;
    if (reserve) {
        bank.note_reserve();
        bank.vectors.note_reserve();
        planned.alora.plan         = {};
        planned.alora.plan.reserve = true;
        planned.alora.plan.shown   = bank.shown;
        if (bank.targets() > 0) {
            planned.alora.plan.kind       = shape::mixed;
            planned.alora.plan.scaled     = true;
            planned.alora.plan.generation = bank.generation;
        }
        planned.alora.plan.steered = bank.vectors.n_points() > 0;
    } else {
        planned.alora.plan = plan_of(bank, ubatch);
    }
    return planned;
}

uint32_t alora_n_nodes(const llama_cparams & cparams) {
    return cparams.alora.bank->n_nodes();
}

static bool check_batch(
        alora_bank & bank, const llama_batch_ext & batch, uint32_t n_max, const char * name) {
    if (batch.tokens.size() > n_max) {
        alora_set_error(
                "a batch of " + std::to_string(batch.tokens.size()) + " tokens exceeds " + name +
                " = " + std::to_string(n_max) + ": split it");
        return false;
    }

    const alora_activations & activations = bank.activations;
    if (activations.empty()) {
        return true;
    }
    for (size_t i = 0; i < batch.tokens.size(); ++i) {
        const auto &       token = batch.tokens[i];
        const llama_seq_id first = token.seq_ids.empty() ? 0 : *token.seq_ids.begin();
        for (const llama_seq_id seq : token.seq_ids) {
            if (!(activations.at(seq, token.pos[0]) == activations.at(first, token.pos[0]))) {
                alora_set_error(
                        "token " + std::to_string(i) + " at position " +
                        std::to_string(token.pos[0]) + " belongs to sequences " +
                        std::to_string(first) + " and " + std::to_string(seq) +
                        ", which have different adapters active there: give each its own token");
                return false;
            }
        }
    }
    return true;
}

bool alora_check_encoded(const llama_cparams & cparams, const llama_batch_ext & batch) {
    alora_bank & bank = *cparams.alora.bank;
    if (batch.mem && bank.needs_cache()) {
        alora_set_error("this model has no encoder: call llama_decode()");
        return false;
    }
    return check_batch(bank, batch, cparams.n_ubatch, "n_ubatch");
}

bool alora_check_batch(const llama_cparams & cparams, const llama_batch_ext & batch) {
    alora_bank & bank = *cparams.alora.bank;
    if (!check_batch(bank, batch, cparams.n_batch, "n_batch")) {
        return false;
    }
    std::vector<bool> noted(LLAMA_MAX_SEQ, false);
    for (const auto & token : batch.tokens) {
        for (const llama_seq_id seq : token.seq_ids) {
            // others are refused next
            if (batch.mem && seq >= 0 && seq < LLAMA_MAX_SEQ && !noted[seq]) {
                noted[seq] = true;
                bank.before_batch.emplace_back(seq, batch.mem->seq_pos_max(seq));
            }
        }
    }
    return true;
}

//
// policies
//

// ggml multiplies the CPU's repacked weights with four rows at a time and reads them again for each
// row that is left over: three rows take longer than four. In long batches that no longer matters,
// and what is added must fit into buffers that were reserved for the longest without it. Graphs of
// the base alone stay upstream's.
static constexpr int64_t REPACKED_ROWS = 4;
static constexpr int64_t PADDED_ROWS   = 32;  // at most, and at most a quarter of the longest batch

// Tokens in a batch of base and adapted ones whose attention is computed apart, with the same limit:
// of longer ones the second mask is larger and the gain smaller.
static constexpr int64_t MIXED_ATTENTION = 128;

static int64_t at_most(const llm_graph_context & graph, int64_t n) {
    return std::min(n, (int64_t) graph.cparams.n_ubatch / 4);
}

int64_t alora_padding(
        const llm_graph_context & graph, const ggml_tensor & w, const ggml_tensor & cur) {
    const alora_ref & ref  = graph.cparams.alora;
    const int64_t     over = cur.ne[1] % REPACKED_ROWS;
    const bool        pays = ref.plan.kind != shape::stock && !ref.plan.reserve && over >= 2 &&
                             cur.ne[1] <= at_most(graph, PADDED_ROWS) && ggml_is_matrix(&w) &&
                             ggml_is_matrix(&cur) && cur.type == GGML_TYPE_F32 &&
                             ggml_is_contiguous(&cur) && ref.bank->repacked(w);
    return pays ? REPACKED_ROWS - over : 0;
}

// Worst-case graphs are reserved with upstream's node, which needs as much memory; a second mask must
// fit into what they leave in short batches.
alora_attention_plan alora_attention_of(const llm_graph_context & graph) {
    const alora_plan & plan = graph.cparams.alora.plan;
    if (plan.attention != alora_attention_plan::adapted) {
        return plan.attention;
    }
    const bool apart =
            graph.n_tokens <= at_most(graph, MIXED_ATTENTION) && alora_host(graph).alone();
    return apart ? alora_attention_plan::adapted : alora_attention_plan::stock;
}
