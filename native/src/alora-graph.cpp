#include "alora-graph.h"

#include "alora-bank.h"
#include "alora-error.h"
#include "alora-input.h"
#include "ggml-backend.h"
#include "llama-batch.h"
#include "llama-cparams.h"
#include "llama-graph.h"

#include <algorithm>

using shape = alora_plan::shape;

alora_ref alora_ref_new(const llama_model & model) {
    return { std::make_shared<alora_bank>(model), {} };
}

//
// which graph a batch needs
//

static alora_plan plan_of(const alora_bank & bank, const llama_ubatch & ubatch) {
    alora_plan plan;
    if (bank.activations.empty()) {
        return plan;
    }

    bool has_base  = false;
    bool has_scale = false;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        const alora_choice choice = alora_choice_of(bank, ubatch, i);
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

    if (plan.kind == shape::stock) {
        return plan;
    }
    plan.generation = bank.generation;
    plan.pure       = !has_base;
    if (plan.kind == shape::single) {
        plan.scaled = has_scale || has_base;
        // fused products take any slot and scale: one graph serves every slot that changes as much
        if (bank.fused_throughout(plan.slot)) {
            plan.kind = shape::mixed;
        }
    } else {
        plan.scaled = has_scale;
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
        planned.alora.plan         = {};
        planned.alora.plan.reserve = true;
        if (bank.targets() > 0) {
            planned.alora.plan.kind       = shape::mixed;
            planned.alora.plan.scaled     = true;
            planned.alora.plan.generation = bank.generation;
        }
    } else {
        planned.alora.plan = plan_of(bank, ubatch);
    }
    return planned;
}

uint32_t alora_n_nodes(const llama_cparams & cparams) {
    return cparams.alora.bank->n_nodes();
}

bool alora_check_batch(const llama_cparams & cparams, const llama_batch_ext & batch) {
    if (batch.tokens.size() > cparams.n_batch) {
        alora_set_error(
                "a batch of " + std::to_string(batch.tokens.size()) +
                " tokens exceeds n_batch = " + std::to_string(cparams.n_batch) + ": split it");
        return false;
    }

    const alora_activations & activations = cparams.alora.bank->activations;
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

//
// the products
//

static alora_input & input_of(const llm_graph_context & graph) {
    for (const auto & input : graph.res->inputs) {
        if (auto * found = dynamic_cast<alora_input *>(input.get())) {
            return *found;
        }
    }
    const alora_ref & ref = graph.cparams.alora;
    return *static_cast<alora_input *>(graph.res->add_input(
            std::make_unique<alora_input>(ref.bank, ref.plan, graph.n_tokens, graph.n_outputs)));
}

// Whether this graph's batch can change the target.
static bool in_plan(const alora_plan & plan, const alora_target & target) {
    return plan.kind == shape::mixed || target.slot_rank[plan.slot] > 0;
}

// The target to change, or null if this graph leaves the weight as it is. Notes the use on the way.
static const alora_target * target_for(
        const llm_graph_context & graph, alora_op op, const ggml_tensor * w, const ggml_tensor * x,
        bool row_is_token) {
    const alora_ref & ref = graph.cparams.alora;
    if (ref.plan.reserve) {
        ref.bank->note_use(op, w->name, x, row_is_token);
    } else if (op == alora_op::embd) {
        ref.bank->n_graphs++;
    }
    if (ref.plan.kind == shape::stock || !row_is_token) {
        return nullptr;
    }
    const alora_target * target = ref.bank->find(op, w->name);
    return target && in_plan(ref.plan, *target) ? target : nullptr;
}

// `target` first, then the other fused targets that this graph will probably multiply with the same
// input: those that a reserved graph did.
static std::vector<const alora_target *> sharing(
        const llm_graph_context & graph, const alora_target & target) {
    const alora_ref &                 ref = graph.cparams.alora;
    std::vector<const alora_target *> all = { &target };
    for (const alora_target * other : ref.bank->sharing_input(target)) {
        if (other != &target && other->fused && other->op == target.op &&
                in_plan(ref.plan, *other)) {
            all.push_back(other);
        }
    }
    return all;
}

// Rows in the view of a single slot's A: its own rank where a row of B may be shorter than its
// stride, which is only sure on the CPU.
static int64_t view_rank(const alora_target & target, int32_t slot) {
    return target.on_host() ? target.slot_rank[slot] : target.rank;
}

// A·x [rank, ...], with zeros up to the width of B's rows.
static ggml_tensor * widen(ggml_context * ctx, ggml_tensor * ax, int64_t width) {
    return ax->ne[0] == width ? ax : ggml_pad(ctx, ax, (int) (width - ax->ne[0]), 0, 0, 0);
}

// One slot's matrices of a stack, `cols` x `rows` of each.
static ggml_tensor * slot_view(
        ggml_context * ctx, ggml_tensor * stack, int32_t slot, int64_t n_expert, int64_t cols,
        int64_t rows) {
    const size_t offset = slot * n_expert * stack->nb[2];
    return n_expert == 1
                   ? ggml_view_2d(ctx, stack, cols, rows, stack->nb[1], offset)
                   : ggml_view_3d(
                             ctx, stack, cols, rows, n_expert, stack->nb[1], stack->nb[2], offset);
}

// ggml multiplies the CPU's repacked weights with four rows at a time and reads them again for each
// row that is left over: three rows take longer than four. In long batches that no longer matters,
// and what is added must fit into buffers that were reserved for the longest without it. Graphs of
// the base alone stay upstream's.
static constexpr int64_t REPACKED_ROWS = 4;
static constexpr int64_t PADDED_ROWS   = 32;  // at most, and at most a quarter of the longest batch

// Tokens in a batch of base and adapted ones whose attention is computed apart, with the same limit.
static constexpr int64_t MIXED_ATTENTION = 128;

ggml_tensor * alora_base_mm(const llm_graph_context & graph, ggml_tensor * w, ggml_tensor * cur) {
    const alora_ref & ref  = graph.cparams.alora;
    const int64_t     over = cur->ne[1] % REPACKED_ROWS;
    const int64_t     most = std::min(PADDED_ROWS, (int64_t) graph.cparams.n_ubatch / 4);
    const bool        pays = ref.plan.kind != shape::stock && !ref.plan.reserve && over >= 2 &&
                             cur->ne[1] <= most && ggml_is_matrix(w) && ggml_is_matrix(cur) &&
                             cur->type == GGML_TYPE_F32 && ggml_is_contiguous(cur) &&
                             ref.bank->repacked(*w);
    if (!pays) {
        return ggml_mul_mat(graph.ctx0, w, cur);
    }
    ggml_tensor * x   = input_of(graph).padded(graph.ctx0, cur, REPACKED_ROWS - over);
    ggml_tensor * res = ggml_mul_mat(graph.ctx0, w, x);
    return ggml_view_2d(graph.ctx0, res, res->ne[0], cur->ne[1], res->nb[1], 0);
}

// Worst-case graphs are reserved with upstream's node, which needs as much memory; a second mask must
// fit into what they leave in short batches. Tokens of the base are upstream's bit for bit, also
// beside adapted ones, unless our attention is asked for.
ggml_tensor * alora_attn(const llm_graph_context & graph, ggml_tensor * stock) {
    const alora_ref & ref    = graph.cparams.alora;
    const bool        choose = ref.bank->attention == alora_attention_path::choose;
    if (ref.plan.reserve || ref.bank->attention == alora_attention_path::stock ||
            (choose && ref.plan.kind == shape::stock)) {
        return stock;
    }
    alora_input &          input = input_of(graph);
    const alora_segments * only  = nullptr;
    if (choose && !ref.plan.pure) {
        if (graph.n_tokens > std::min(MIXED_ATTENTION, (int64_t) graph.cparams.n_ubatch / 4) ||
                ggml_backend_sched_get_n_backends(graph.sched) != 1) {
            return stock;
        }
        only = &input.rows_for(graph.n_tokens).segments;
    }
    const int n_threads = std::max(graph.cparams.n_threads, graph.cparams.n_threads_batch);
    return input.attention.node(graph.ctx0, stock, ref.bank->workspace, n_threads, choose, only);
}

ggml_tensor * alora_mm(
        const llm_graph_context & graph, ggml_tensor * w, ggml_tensor * cur, ggml_tensor * res) {
    const int64_t        n_rows = ggml_nrows(cur);
    const bool           known  = n_rows == graph.n_tokens || n_rows == graph.n_outputs;
    const alora_target * target = target_for(graph, alora_op::mm, w, cur, known);
    if (!target) {
        return res;
    }

    ggml_context *     ctx   = graph.ctx0;
    const alora_plan & plan  = graph.cparams.alora.plan;
    alora_input &      input = input_of(graph);
    alora_rows &       rows  = input.rows_for(n_rows);
    if (target->fused) {
        return input.fused.product(
                graph, { &rows.segments, n_rows }, *target, [&] { return sharing(graph, *target); },
                cur, res);
    }

    ggml_tensor * ax;
    ggml_tensor * delta;
    if (plan.kind == shape::single) {
        const int64_t rank = view_rank(*target, plan.slot);
        ax                 = ggml_mul_mat(
                ctx, slot_view(ctx, target->a, plan.slot, 1, target->cols_a(), rank), cur);
        if (plan.scaled) {
            ggml_tensor * scales = input.scales(ctx, rows);
            ax                   = ggml_mul(
                    ctx, ax, ggml_reshape_4d(ctx, scales, 1, cur->ne[1], cur->ne[2], cur->ne[3]));
        }
        const int64_t width = target->width(rank, n_rows > 1);
        delta               = ggml_mul_mat(
                ctx, slot_view(ctx, target->b, plan.slot, 1, width, target->rows_b()),
                widen(ctx, ax, width));
    } else {
        ggml_tensor * x = ggml_is_contiguous(cur) ? ggml_reshape_3d(ctx, cur, cur->ne[0], 1, n_rows)
                                                  : ggml_cont_3d(ctx, cur, cur->ne[0], 1, n_rows);
        ax              = ggml_mul_mat_id(ctx, target->a, x, input.slots(ctx, rows));
        if (plan.scaled) {
            ax = ggml_mul(ctx, ax, input.scales(ctx, rows));
        }
        ax    = widen(ctx, ax, target->cols_b());
        delta = ggml_mul_mat_id(ctx, target->b, ax, input.slots(ctx, rows));
        delta = ggml_reshape_4d(ctx, delta, res->ne[0], res->ne[1], res->ne[2], res->ne[3]);
    }
    return ggml_add(ctx, res, delta);
}

ggml_tensor * alora_mm_id(
        const llm_graph_context & graph, ggml_tensor * w, ggml_tensor * cur, ggml_tensor * ids,
        ggml_tensor * res) {
    const int64_t        n_rows = ids->ne[1];
    const bool           known  = n_rows == graph.n_tokens || n_rows == graph.n_outputs;
    const alora_target * target = target_for(graph, alora_op::mm_id, w, cur, known);
    if (!target) {
        return res;
    }

    ggml_context *     ctx   = graph.ctx0;
    const alora_plan & plan  = graph.cparams.alora.plan;
    const int64_t      n_exp = target->n_expert();
    alora_input &      input = input_of(graph);
    alora_rows &       rows  = input.rows_for(n_rows);
    if (target->fused) {
        return input.fused.product(
                graph, input.fused.routed(graph, rows.segments, ids), *target,
                [&] { return sharing(graph, *target); }, cur, res);
    }

    ggml_tensor * a = target->a;
    ggml_tensor * b = target->b;
    if (plan.kind == shape::single) {
        const int64_t rank = view_rank(*target, plan.slot);
        a                  = slot_view(ctx, a, plan.slot, n_exp, target->cols_a(), rank);
        b = slot_view(ctx, b, plan.slot, n_exp, target->width(rank), target->rows_b());
    } else {
        // look the chosen experts up among the matrices of each token's slot
        ids = ggml_get_rows(ctx, input.expert(ctx, rows, n_exp), ids);
        ids = ggml_reshape_2d(ctx, ids, ids->ne[1], ids->ne[2]);
    }

    ggml_tensor * ax = ggml_mul_mat_id(ctx, a, cur, ids);
    if (plan.scaled) {
        ax = ggml_mul(ctx, ax, input.scales(ctx, rows));
    }
    return ggml_add(ctx, res, ggml_mul_mat_id(ctx, b, widen(ctx, ax, b->ne[0]), ids));
}

ggml_tensor * alora_embd(
        const llm_graph_context & graph, ggml_tensor * tok_embd, ggml_tensor * tokens,
        ggml_tensor * res) {
    const alora_target * target = target_for(graph, alora_op::embd, tok_embd, tokens, true);
    if (!target) {
        return res;
    }

    ggml_context *     ctx     = graph.ctx0;
    const alora_plan & plan    = graph.cparams.alora.plan;
    const int64_t      n_vocab = target->rows_a();
    alora_input &      input   = input_of(graph);
    alora_rows &       rows    = input.rows_for(graph.n_tokens);

    ggml_tensor * ax;
    ggml_tensor * delta;
    if (plan.kind == shape::single) {
        ggml_tensor * a = ggml_view_2d(
                ctx, target->a, target->rank, n_vocab, target->a->nb[1],
                plan.slot * n_vocab * target->a->nb[1]);
        ax = ggml_get_rows(ctx, a, tokens);
        if (plan.scaled) {
            ax = ggml_mul(ctx, ax, ggml_reshape_2d(ctx, input.scales(ctx, rows), 1, rows.n));
        }
        delta = ggml_mul_mat(
                ctx, slot_view(ctx, target->b, plan.slot, 1, target->cols_b(), target->rows_b()),
                widen(ctx, ax, target->cols_b()));
    } else {
        ax = ggml_get_rows(ctx, target->a, input.embedding(ctx, n_vocab));
        if (plan.scaled) {
            ax = ggml_mul(ctx, ax, ggml_reshape_2d(ctx, input.scales(ctx, rows), 1, rows.n));
        }
        ax    = widen(ctx, ggml_reshape_3d(ctx, ax, target->rank, 1, rows.n), target->cols_b());
        delta = ggml_mul_mat_id(ctx, target->b, ax, input.slots(ctx, rows));
        delta = ggml_reshape_2d(ctx, delta, res->ne[0], rows.n);
    }
    return ggml_add(ctx, res, delta);
}
