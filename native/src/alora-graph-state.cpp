#include "alora-graph-state.h"

#include "ggml-backend.h"
#include "llama-batch.h"
#include "llama-cparams.h"

alora_graph_state & alora_graph_state::of(const llm_graph_context & graph) {
    for (const auto & input : graph.res->inputs) {
        if (auto * found = dynamic_cast<alora_graph_state *>(input.get())) {
            return *found;
        }
    }
    const alora_ref & ref = graph.cparams.alora;
    return *static_cast<alora_graph_state *>(graph.res->add_input(
            std::make_unique<alora_graph_state>(
                    ref.bank, ref.plan, graph.n_tokens, graph.n_outputs)));
}

template <typename T> static void upload(ggml_tensor * t, const std::vector<T> & values) {
    // no buffer: nothing in the graph reads it
    if (t && t->buffer) {
        ggml_backend_tensor_set(t, values.data(), 0, values.size() * sizeof(T));
    }
}

static std::vector<alora_choice> of_outputs(
        const llama_ubatch & ubatch, const std::vector<alora_choice> & all) {
    std::vector<alora_choice> out;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        if (ubatch.output && ubatch.output[i]) {
            out.push_back(all[i]);
        }
    }
    return out;
}

void alora_graph_state::fill(alora_rows & rows, const std::vector<alora_choice> & choices) {
    std::vector<int32_t> slots;
    for (const alora_choice & choice : choices) {
        slots.push_back(choice.slot);
    }
    upload(rows.slots, slots);
    for (const auto & [of_slot, tensor] : rows.scales) {
        std::vector<float> scales;
        for (const alora_choice & choice : choices) {
            scales.push_back(choice.slot == 0 ? 0.0f : choice.scale * of_slot[choice.slot]);
        }
        upload(tensor, scales);
    }
    for (const auto & [n_expert, tensor] : rows.expert) {
        std::vector<int32_t> experts;
        for (const alora_choice & choice : choices) {
            for (int64_t e = 0; e < n_expert; ++e) {
                experts.push_back((int32_t) (choice.slot * n_expert + e));
            }
        }
        upload(tensor, experts);
    }
    rows.segments.fill(choices);
}

void alora_graph_state::set_input(const llama_ubatch * ubatch) {
    std::vector<alora_choice> all;
    for (uint32_t i = 0; i < ubatch->n_tokens; ++i) {
        all.push_back(alora_activation_of(*bank, *ubatch, i));
    }
    if (plan.steered) {
        tokens.steered.fill(bank->vectors, all);
        outputs.steered.fill(bank->vectors, of_outputs(*ubatch, all));
        steer.set_inputs();
    }
    for (alora_choice & choice : all) {
        choice = bank->vectors.weights_of(choice);
    }
    fill(tokens, all);
    const std::vector<alora_choice> out = of_outputs(*ubatch, all);
    if (outputs.n == (int64_t) out.size()) {
        fill(outputs, out);
    }

    if (embd_rows && ubatch->token) {
        std::vector<int32_t> ids;
        for (uint32_t i = 0; i < ubatch->n_tokens; ++i) {
            ids.push_back((int32_t) (all[i].slot * n_vocab + ubatch->token[i]));
        }
        upload(embd_rows, ids);
    }
}
