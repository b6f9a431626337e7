// What upstream's graph builder and context see of the bank; native/README.md lists who calls what.
#pragma once

#include <cstdint>
#include <memory>

class alora_bank;
struct ggml_tensor;
struct llama_batch_ext;
struct llama_cparams;
struct llama_model;
struct llama_ubatch;
struct llm_graph_context;

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
    bool pure    = false;  // every token is adapted: attention need not be upstream's bit for bit
    bool reserve = false;  // built to size buffers, never computed
    uint64_t generation = 0;  // of the bank; 0 for stock, which reads nothing of it

    bool operator==(const alora_plan & other) const {
        return kind == other.kind && slot == other.slot && scaled == other.scaled &&
               pure == other.pure && generation == other.generation;
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

// The base's own product, w times cur; where adapters are active, in the form that is cheapest.
ggml_tensor * alora_base_mm(const llm_graph_context & graph, ggml_tensor * w, ggml_tensor * cur);

// Our node in place of `stock`, upstream's for attention, where it is faster; `stock` elsewhere.
ggml_tensor * alora_attn(const llm_graph_context & graph, ggml_tensor * stock);

// Each returns `res`, the base's result, plus what the bank adds to it (`res` itself if nothing).
ggml_tensor * alora_mm(
        const llm_graph_context & graph, ggml_tensor * w, ggml_tensor * cur, ggml_tensor * res);
ggml_tensor * alora_mm_id(
        const llm_graph_context & graph, ggml_tensor * w, ggml_tensor * cur, ggml_tensor * ids,
        ggml_tensor * res);
ggml_tensor * alora_embd(
        const llm_graph_context & graph, ggml_tensor * tok_embd, ggml_tensor * tokens,
        ggml_tensor * res);
