#include "alora-graph.h"

#include "alora-bank.h"
#include "alora-graph-state.h"
#include "alora-host.h"
#include "llama-cparams.h"

#include <algorithm>

using shape = alora_plan::shape;

// Whether this graph's batch can change the target.
static bool in_plan(const alora_plan & plan, const alora_target & target) {
    return plan.kind == shape::mixed || target.slot_rank[plan.slot] > 0;
}

// The target to change, or null if this graph leaves the weight as it is. Notes the use on the way.
static const alora_target * target_for(
        const llm_graph_context & graph, alora_op op, const ggml_tensor * w, const ggml_tensor * x,
        bool row_is_token, const ggml_tensor * product) {
    const alora_ref &    ref = graph.cparams.alora;
    const alora_target * target =
            ref.plan.kind == shape::stock ? nullptr : ref.bank->find(op, w->name);
    if (target && !in_plan(ref.plan, *target)) {
        target = nullptr;
    }
    if (ref.plan.reserve) {
        ref.bank->note_use(op, w->name, x, row_is_token, target ? nullptr : product);
    } else if (op == alora_op::embd) {
        ref.bank->n_graphs++;
    }
    if (target && !row_is_token) {
        ref.bank->n_skipped++;
        return nullptr;
    }
    return target;
}

// Asks it of the base's own product, which padding may have put a view on.
static void keep_precision(const alora_target & target, ggml_tensor * res) {
    target.precision.ask_of(res->view_src ? res->view_src : res);
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

ggml_tensor * alora_base_mm(const llm_graph_context & graph, ggml_tensor * w, ggml_tensor * cur) {
    const int64_t padding = alora_padding(graph, *w, *cur);
    if (padding == 0) {
        return ggml_mul_mat(graph.ctx0, w, cur);
    }
    ggml_tensor * x   = alora_graph_state::of(graph).padded(graph.ctx0, cur, padding);
    ggml_tensor * res = ggml_mul_mat(graph.ctx0, w, x);
    return ggml_view_2d(graph.ctx0, res, res->ne[0], cur->ne[1], res->nb[1], 0);
}

ggml_tensor * alora_attn(const llm_graph_context & graph, ggml_tensor * stock) {
    const alora_attention_plan plan = alora_attention_of(graph);
    if (plan == alora_attention_plan::stock) {
        return stock;
    }
    alora_graph_state &    state = alora_graph_state::of(graph);
    const alora_segments * only  = plan == alora_attention_plan::adapted
                                           ? &state.rows_for(graph.n_tokens).segments
                                           : nullptr;
    alora_bank &           bank  = *graph.cparams.alora.bank;
    bank.n_threads =
            std::max({ bank.n_threads, graph.cparams.n_threads, graph.cparams.n_threads_batch });
    return state.attention.build(
            alora_host(graph), stock, bank.workspace, bank.n_threads,
            plan != alora_attention_plan::ours, only);
}

ggml_tensor * alora_mm(
        const llm_graph_context & graph, ggml_tensor * w, ggml_tensor * cur, ggml_tensor * res) {
    const int64_t        n_rows = ggml_nrows(cur);
    const bool           known  = n_rows == graph.n_tokens || n_rows == graph.n_outputs;
    const alora_target * target = target_for(graph, alora_op::mm, w, cur, known, res);
    if (!target) {
        return res;
    }
    keep_precision(*target, res);

    ggml_context *      ctx   = graph.ctx0;
    const alora_plan &  plan  = graph.cparams.alora.plan;
    alora_graph_state & state = alora_graph_state::of(graph);
    alora_rows &        rows  = state.rows_for(n_rows);
    if (target->fused) {
        return state.fused.product(
                graph, { &rows.segments, n_rows }, *target, [&] { return sharing(graph, *target); },
                cur, res);
    }

    ggml_tensor * ax;
    ggml_tensor * delta;
    if (plan.kind == shape::single) {
        const int64_t rank = view_rank(*target, plan.slot);
        ax                 = ggml_mul_mat(
                ctx, slot_view(ctx, target->a, plan.slot, 1, target->cols_a(), rank), cur);
        target->precision.ask_of(ax);
        if (plan.scaled) {
            ggml_tensor * scales = state.scales(ctx, rows, *target);
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
        ax              = ggml_mul_mat_id(ctx, target->a, x, state.slots(ctx, rows));
        target->precision.ask_of(ax);
        if (plan.scaled) {
            ax = ggml_mul(ctx, ax, state.scales(ctx, rows, *target));
        }
        ax    = widen(ctx, ax, target->cols_b());
        delta = ggml_mul_mat_id(ctx, target->b, ax, state.slots(ctx, rows));
        delta = ggml_reshape_4d(ctx, delta, res->ne[0], res->ne[1], res->ne[2], res->ne[3]);
    }
    return ggml_add(ctx, res, delta);
}

ggml_tensor * alora_mm_id(
        const llm_graph_context & graph, ggml_tensor * w, ggml_tensor * cur, ggml_tensor * ids,
        ggml_tensor * res) {
    const int64_t        n_rows = ids->ne[1];
    const bool           known  = n_rows == graph.n_tokens || n_rows == graph.n_outputs;
    const alora_target * target = target_for(graph, alora_op::mm_id, w, cur, known, res);
    if (!target) {
        return res;
    }
    keep_precision(*target, res);

    ggml_context *      ctx   = graph.ctx0;
    const alora_plan &  plan  = graph.cparams.alora.plan;
    const int64_t       n_exp = target->n_expert();
    alora_graph_state & state = alora_graph_state::of(graph);
    alora_rows &        rows  = state.rows_for(n_rows);
    if (target->fused) {
        return state.fused.product(
                graph, state.fused.route(graph, rows.segments, ids), *target,
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
        ids = ggml_get_rows(ctx, state.expert(ctx, rows, n_exp), ids);
        ids = ggml_reshape_2d(ctx, ids, ids->ne[1], ids->ne[2]);
    }

    ggml_tensor * ax = ggml_mul_mat_id(ctx, a, cur, ids);
    target->precision.ask_of(ax);
    if (plan.scaled) {
        ax = ggml_mul(ctx, ax, state.scales(ctx, rows, *target));
    }
    return ggml_add(ctx, res, ggml_mul_mat_id(ctx, b, widen(ctx, ax, b->ne[0]), ids));
}

ggml_tensor * alora_embd(
        const llm_graph_context & graph, ggml_tensor * tok_embd, ggml_tensor * tokens,
        ggml_tensor * res) {
    const alora_target * target = target_for(graph, alora_op::embd, tok_embd, tokens, true, res);
    if (!target) {
        return res;
    }

    ggml_context *      ctx     = graph.ctx0;
    const alora_plan &  plan    = graph.cparams.alora.plan;
    const int64_t       n_vocab = target->rows_a();
    alora_graph_state & state   = alora_graph_state::of(graph);
    alora_rows &        rows    = state.rows_for(graph.n_tokens);

    ggml_tensor * ax;
    ggml_tensor * delta;
    if (plan.kind == shape::single) {
        ggml_tensor * a = ggml_view_2d(
                ctx, target->a, target->rank, n_vocab, target->a->nb[1],
                plan.slot * n_vocab * target->a->nb[1]);
        ax = ggml_get_rows(ctx, a, tokens);
        if (plan.scaled) {
            ax = ggml_mul(
                    ctx, ax, ggml_reshape_2d(ctx, state.scales(ctx, rows, *target), 1, rows.n));
        }
        delta = ggml_mul_mat(
                ctx, slot_view(ctx, target->b, plan.slot, 1, target->cols_b(), target->rows_b()),
                widen(ctx, ax, target->cols_b()));
    } else {
        ax = ggml_get_rows(ctx, target->a, state.embedding(ctx, n_vocab));
        if (plan.scaled) {
            ax = ggml_mul(
                    ctx, ax, ggml_reshape_2d(ctx, state.scales(ctx, rows, *target), 1, rows.n));
        }
        ax    = widen(ctx, ggml_reshape_3d(ctx, ax, target->rank, 1, rows.n), target->cols_b());
        delta = ggml_mul_mat_id(ctx, target->b, ax, state.slots(ctx, rows));
        delta = ggml_reshape_2d(ctx, delta, res->ne[0], rows.n);
    }
    return ggml_add(ctx, res, delta);
}

static ggml_tensor * steered(
        const llm_graph_context & graph, const alora_point & point, ggml_tensor * cur) {
    const alora_ref & ref    = graph.cparams.alora;
    const int64_t     n_rows = ggml_nrows(cur);
    const bool        known  = n_rows == graph.n_tokens || n_rows == graph.n_outputs;
    if (!ref.plan.steered || !ref.bank->vectors.acts_at(point) || ggml_is_empty(cur)) {
        return cur;
    }
    if (!known) {
        ref.bank->n_skipped++;
        return cur;
    }
    alora_graph_state &   state   = alora_graph_state::of(graph);
    const alora_steered & steered = state.rows_for(n_rows).steered;
    const auto *          stack   = ref.bank->vectors.directions.find(point);
    return stack ? state.steer.build_on_device(graph.ctx0, steered, *stack, cur)
                 : state.steer.build(alora_host(graph), steered, point, cur);
}

// Upstream's callback renames what it is given, which `t` may be; nothing renames a copy.
static void show(const llm_graph_context & graph, const alora_point & point, ggml_tensor * t) {
    ggml_tensor * copy = ggml_cont(graph.ctx0, t);
    ggml_format_name(copy, "alora_shown-%d", point.layer);
    ggml_build_forward_expand(graph.gf, copy);
}

static ggml_tensor * at_point(
        const llm_graph_context & graph, const alora_point & point, ggml_tensor * cur) {
    const alora_ref & ref = graph.cparams.alora;
    if (ref.plan.reserve) {
        const int64_t n_rows = ggml_nrows(cur);
        const bool    known  = n_rows == graph.n_tokens || n_rows == graph.n_outputs;
        ref.bank->vectors.note(point, *cur, known, ref.bank->n_reserves);
    }
    ggml_tensor * res = steered(graph, point, cur);
    if (ref.plan.shown == point.hook) {
        show(graph, point, res);
    }
    return res;
}

ggml_tensor * alora_behind_block(const llm_graph_context & graph, ggml_tensor * cur, int il) {
    return at_point(graph, { ALORA_HOOK_BLOCK, il }, cur);
}

ggml_tensor * alora_behind_attn(
        const llm_graph_context & graph, const ggml_tensor * wo, ggml_tensor * cur, int il) {
    return wo ? at_point(graph, { ALORA_HOOK_ATTENTION, il }, cur) : cur;
}

ggml_tensor * alora_behind_ffn(
        const llm_graph_context & graph, const ggml_tensor * down, ggml_tensor * cur, int il) {
    return down ? at_point(graph, { ALORA_HOOK_FFN, il }, cur) : cur;
}
