// The plan of a batch: which graph it needs, and the policies that go with it, padding and attention.
// Builds nothing.
#pragma once

#include "alora-slots.h"

#include <cstdint>
#include <memory>

class alora_bank;
struct ggml_tensor;
struct llama_batch_ext;
struct llama_cparams;
struct llama_model;
struct llama_ubatch;
struct llm_graph_context;

// Whose attention nodes a graph has.
enum class alora_attention_plan : uint8_t {
    stock,    // upstream's
    adapted,  // upstream's, and ours for the rows of adapted tokens
    ours,     // ours wherever it can
    faster,   // ours wherever it can and is faster
};

// The shape of a graph, as far as adapters go. Slot ids and scales are inputs, so two batches of
// one plan can use one graph whatever is active in them.
struct alora_plan {
    enum class shape {
        stock,   // no token is adapted: upstream's own graph
        single,  // all adapted tokens share one slot: plain products with views of it
        mixed,   // several slots: products select theirs by id
    };

    shape   kind = shape::stock;
    int32_t slot = 0;      // single: the slot
    bool scaled  = false;  // A·x is multiplied per token, by 0 where a single graph has base tokens
    alora_attention_plan attention = alora_attention_plan::stock;
    bool                 reserve   = false;  // built to size buffers, never computed
    bool                 steered   = false;  // some token uses a vector, whatever the shape
    int32_t              shown = -1;  // the hook of whose tensors the graph has copies; -1: none
    uint64_t             generation = 0;  // of the bank; 0 for a graph that reads nothing of it

    bool operator==(const alora_plan & other) const {
        return kind == other.kind && slot == other.slot && scaled == other.scaled &&
               attention == other.attention && steered == other.steered && shown == other.shown &&
               generation == other.generation;
    }
};

// A context's bank and the plan of the graph at hand; a member of llama_cparams, because those
// reach both the context and every graph.
struct alora_ref {
    std::shared_ptr<alora_bank> bank;
    alora_plan                  plan;

    bool operator==(const alora_ref & other) const {
        return bank == other.bank && plan == other.plan;
    }
};

alora_ref alora_ref_new(const llama_model & model);

// A copy of cparams with the plan for this batch; while reserving, the costliest plan there is.
llama_cparams alora_planned(
        const llama_cparams & cparams, const llama_ubatch & ubatch, bool reserve);

// Nodes to reserve for the bank's part of a graph.
uint32_t alora_n_nodes(const llama_cparams & cparams);

// False, with alora_last_error() set, for a batch that upstream would abort on or that asks for two
// slots on one token.
bool alora_check_batch(const llama_cparams & cparams, const llama_batch_ext & batch);

// What token i of a batch uses, of any slot.
alora_choice alora_activation_of(const alora_bank & bank, const llama_ubatch & ubatch, uint32_t i);

// Rows of zeros that make the product w times cur cheaper, put behind cur's; 0: none.
int64_t alora_padding(
        const llm_graph_context & graph, const ggml_tensor & w, const ggml_tensor & cur);

// The plan's, where this graph can have it.
alora_attention_plan alora_attention_of(const llm_graph_context & graph);
