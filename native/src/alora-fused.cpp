#include "alora-fused.h"

#include "alora-host.h"
#include "alora-kernels.h"
#include "alora-target.h"
#include "ggml-backend.h"
#include "llama-graph.h"

#include <algorithm>
#include <cstring>

// Rows that a thread computes at once, so that a block of A or of B is read from its cache for all
// of them and the rows' own values stay there too.
static constexpr int32_t ROWS_AT_ONCE = 16;

// Rows of A that a thread takes at a time.
static constexpr int64_t SHRINK_STEP = 4;

// Where row `i` of a tensor begins, counting rows over all its dimensions.
static char * row_of(const ggml_tensor * t, int64_t i) {
    const int64_t i1 = i % t->ne[1];
    const int64_t i2 = i / t->ne[1] % t->ne[2];
    const int64_t i3 = i / t->ne[1] / t->ne[2];
    return (char *) t->data + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3];
}

//
// the nodes
//

// Sorts rows by expert: src[0] is the chosen experts. Nobody reads the result. ggml calls this on
// every thread whatever number it is told.
static void compute_route(ggml_tensor * dst, int ith, int, void * userdata) {
    if (ith == 0) {
        auto & node = *(alora_fused::route_node *) userdata;
        node.sorted.route(node.tokens, *dst->src[0]);
    }
}

// Steps that the rows of a part's A are computed in.
static int64_t n_steps(const alora_fused::part & part, int32_t slot) {
    return (part.target->slot_rank[slot] + SHRINK_STEP - 1) / SHRINK_STEP;
}

// Steps `begin` to `end` of part `p` for a segment's rows from `first_row` on.
static void shrink_steps(
        const ggml_tensor * dst, const alora_fused::shrink_node & node,
        const alora_segments::segment & segment, int32_t first_row, size_t p, int64_t begin,
        int64_t end) {
    const auto &    part  = node.parts[p];
    const int64_t   first = SHRINK_STEP * begin;
    const int64_t   last  = std::min(part.target->slot_rank[segment.slot], SHRINK_STEP * end);
    const int64_t   share = ggml_nrows(dst) / ggml_nrows(dst->src[0]);  // rows that read one of x
    const int32_t   n     = std::min(ROWS_AT_ONCE, segment.n - first_row);
    const int32_t * row   = node.segments.row.data() + segment.first + first_row;
    const float *   x[ROWS_AT_ONCE];
    float *         y[ROWS_AT_ONCE];
    float           scale[ROWS_AT_ONCE];
    for (int32_t t = 0; t < n; ++t) {
        scale[t] = part.target->slot_scale[segment.slot] *
                   node.segments.scale[segment.first + first_row + t];
        x[t]     = (const float *) row_of(dst->src[0], row[t] / share);
        y[t]     = (float *) row_of(dst, row[t]) + part.offset + first;
    }
    const ggml_type type   = part.target->slot_own[segment.slot].type_a;
    const int64_t   n_in   = part.target->cols_a();
    const char *    a      = part.target->own_a(segment.slot, segment.expert);
    const size_t    stride = alora_row_size(type, n_in);
    alora_kernels_best().shrink(type, { a + first * stride, n_in, last - first, n, x, y, scale });
}

// Calls body(segment, first_row, p, n_steps) for all that a shrink node computes, in order.
template <typename F> static void each_part(const alora_fused::shrink_node & node, const F & body) {
    for (const auto & segment : node.segments.all) {
        for (int32_t first_row = 0; first_row < segment.n; first_row += ROWS_AT_ONCE) {
            for (size_t p = 0; p < node.parts.size(); ++p) {
                body(segment, first_row, p, n_steps(node.parts[p], segment.slot));
            }
        }
    }
}

// y = scale * A x: src[0] is x. Threads share the rows of all A.
static void compute_shrink(ggml_tensor * dst, int ith, int nth, void * userdata) {
    auto &  node  = *(alora_fused::shrink_node *) userdata;
    int64_t n_all = 0;
    each_part(node, [&](const auto &, int32_t, size_t, int64_t steps) { n_all += steps; });
    node.chunks.each_range(n_all, ith, nth, [&](int64_t begin, int64_t end) {
        int64_t at = 0;
        each_part(node, [&](const auto & segment, int32_t first_row, size_t p, int64_t steps) {
            const int64_t from = std::max((int64_t) 0, begin - at);
            const int64_t to   = std::min(steps, end - at);
            if (from < to) {
                shrink_steps(dst, node, segment, first_row, p, from, to);
            }
            at += steps;
        });
    });
}

// What a segment adds to the outputs of tiles `begin` to `end`.
static void expand_tiles(
        ggml_tensor * dst, const alora_fused::expand_node & node,
        const alora_segments::segment & segment, int64_t begin, int64_t end) {
    const alora_target & target = *node.what.target;
    const int64_t        rank   = target.slot_rank[segment.slot];
    if (rank == 0) {
        return;
    }
    const ggml_type type = target.slot_own[segment.slot].type_b;
    const char *    b =
            target.own_b(segment.slot, segment.expert) + begin * alora_tile_size(type, rank);
    const int64_t first = begin * ALORA_TILE;
    const int64_t last  = std::min(dst->ne[0], end * ALORA_TILE);
    for (int32_t first_row = 0; first_row < segment.n; first_row += ROWS_AT_ONCE) {
        const int32_t   n   = std::min(ROWS_AT_ONCE, segment.n - first_row);
        const int32_t * row = node.segments.row.data() + segment.first + first_row;
        const float *   y[ROWS_AT_ONCE];
        float *         out[ROWS_AT_ONCE];
        for (int32_t t = 0; t < n; ++t) {
            y[t]   = (const float *) row_of(dst->src[1], row[t]) + node.what.offset;
            out[t] = (float *) row_of(dst, row[t]) + first;
        }
        alora_kernels_best().expand(type, { b, rank, last - first, n, y, out });
    }
}

// Tiles `begin` to `end` of the base's results, all rows.
static void copy_tiles(ggml_tensor * dst, int64_t begin, int64_t end) {
    const int64_t first = begin * ALORA_TILE;
    const int64_t last  = std::min(dst->ne[0], end * ALORA_TILE);
    for (int64_t i = 0; i < ggml_nrows(dst); ++i) {
        memcpy((float *) row_of(dst, i) + first, (const float *) row_of(dst->src[0], i) + first,
                (last - first) * sizeof(float));
    }
}

// dst += B y: src[0] is the base's result, of which dst is a view or else becomes a copy, then y.
// Threads share the tiles of all segments, which a thread reads from front to back,
// except that a copy has to be there before anything is added to it.
static void compute_expand(ggml_tensor * dst, int ith, int nth, void * userdata) {
    auto &        node     = *(alora_fused::expand_node *) userdata;
    const auto &  segments = node.segments.all;
    const int64_t n_tiles  = node.what.target->n_tiles();
    if (dst->data != dst->src[0]->data) {
        node.chunks.each_range(n_tiles, ith, nth, [&](int64_t begin, int64_t end) {
            copy_tiles(dst, begin, end);
            for (const auto & segment : segments) {
                expand_tiles(dst, node, segment, begin, end);
            }
        });
        return;
    }
    node.chunks.each_range(n_tiles * segments.size(), ith, nth, [&](int64_t begin, int64_t end) {
        for (int64_t s = begin / n_tiles; s * n_tiles < end; ++s) {
            expand_tiles(
                    dst, node, segments[s], std::max((int64_t) 0, begin - s * n_tiles),
                    std::min(n_tiles, end - s * n_tiles));
        }
    });
}

//
// building them
//

alora_fused::product_rows alora_fused::route(
        const llm_graph_context & graph, const alora_segments & tokens, ggml_tensor * ids) {
    product_rows & of = by_ids[ids];
    if (!of.routed) {
        route_node & node = routes.emplace_back(tokens);
        of = { &node.sorted, ggml_nelements(ids),
            alora_host(graph).node(
                    { compute_route, &node, "alora_routes", 1 }, GGML_TYPE_I32, { 1, 1, 1, 1 },
                    { ids }) };
    }
    return of;
}

const alora_fused::part * alora_fused::find(
        const alora_target & target, const product_rows & rows, const ggml_tensor * x) const {
    const auto seen = by_input.find(x);
    if (seen == by_input.end()) {
        return nullptr;
    }
    for (const shrink_node * node : seen->second) {
        if (&node->segments != rows.segments) {
            continue;
        }
        for (const part & p : node->parts) {
            if (p.target == &target) {
                return &p;
            }
        }
    }
    return nullptr;
}

const alora_fused::part & alora_fused::shrink(
        const llm_graph_context & graph, const product_rows & rows,
        const std::vector<const alora_target *> & targets, ggml_tensor * x) {
    shrink_node & node = shrinks.emplace_back(*rows.segments);
    by_input[x].push_back(&node);

    ggml_context * ctx = graph.ctx0;
    if (x->type != GGML_TYPE_F32) {
        x = ggml_cast(ctx, x, GGML_TYPE_F32);
    } else if (x->nb[0] != sizeof(float)) {
        x = ggml_cont(ctx, x);
    }

    std::vector<ggml_tensor *> sources = { x };
    int64_t                    n       = 0;
    for (const alora_target * target : targets) {
        if (target->cols_a() == x->ne[0]) {
            node.parts.push_back({ target, n, nullptr });
            n += target->rank;
        }
    }
    if (rows.routed) {
        sources.push_back(rows.routed);
    }
    ggml_tensor * y = alora_host(graph).node(
            { compute_shrink, &node, "alora_shrink" }, GGML_TYPE_F32, { n, rows.n, 1, 1 }, sources);
    for (part & p : node.parts) {
        p.y = y;
    }
    return node.parts.front();
}

ggml_tensor * alora_fused::expand(
        const llm_graph_context & graph, const product_rows & rows, const part & what,
        ggml_tensor * res) {
    const alora_host           host(graph);
    const alora_host::function add = { compute_expand, &expands.emplace_back(*rows.segments, what),
        "alora_expand" };
    return host.may_write(res)
                   ? host.in_place(add, res, { what.y })
                   : host.node(
                             add, GGML_TYPE_F32, { res->ne[0], res->ne[1], res->ne[2], res->ne[3] },
                             { res, what.y });
}
