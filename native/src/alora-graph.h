// What upstream's graph builder and context see of the bank; native/README.md lists who calls what.
#pragma once

#include "alora-plan.h"

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

// Each returns `cur` with what vectors do behind block `il`, its attention or its FFN (`cur` itself if
// nothing); of the last two only if the product with their last weight, `wo` or `down`, is in `cur`.
ggml_tensor * alora_behind_block(const llm_graph_context & graph, ggml_tensor * cur, int il);
ggml_tensor * alora_behind_attn(
        const llm_graph_context & graph, const ggml_tensor * wo, ggml_tensor * cur, int il);
ggml_tensor * alora_behind_ffn(
        const llm_graph_context & graph, const ggml_tensor * down, ggml_tensor * cur, int il);
