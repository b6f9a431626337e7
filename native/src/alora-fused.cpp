#include "alora-fused.h"

#include "alora-kernels.h"
#include "alora-target.h"
#include "ggml-backend.h"
#include "llama-graph.h"

#include <algorithm>
#include <cstring>

// Rows in a segment at most: what a thread computes at once, so that a block of A or of B is read
// from its cache for all of them and the rows' own values stay there too.
static constexpr int32_t SEGMENT_ROWS = 16;

// Rows of A that a thread takes at a time.
static constexpr int64_t DOT_STEP = 4;

// Sources of a node: x or the result, and one stack for each part.
static constexpr size_t MAX_PARTS = GGML_MAX_SRC - 2;

void alora_segments::fill(const std::vector<alora_choice> & choices) {
    row.clear();
    scale.clear();
    all.clear();
    for (size_t i = 0; i < choices.size(); ++i) {
        if (choices[i].slot != 0) {
            row.push_back((int32_t) i);
        }
    }
    std::stable_sort(row.begin(), row.end(), [&](int32_t a, int32_t b) {
        return choices[a].slot < choices[b].slot;
    });
    for (const int32_t i : row) {
        const int32_t slot = choices[i].slot;
        if (all.empty() || all.back().slot != slot || all.back().n == SEGMENT_ROWS) {
            all.push_back({ slot, (int32_t) scale.size(), 0 });
        }
        all.back().n++;
        scale.push_back(choices[i].scale);
    }
}

// Where row `i` of a tensor begins, counting rows over all its dimensions.
static char * row_of(const ggml_tensor * t, int64_t i) {
    const int64_t i1 = i % t->ne[1];
    const int64_t i2 = i / t->ne[1] % t->ne[2];
    const int64_t i3 = i / t->ne[1] / t->ne[2];
    return (char *) t->data + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3];
}

static const char * slot_of(const ggml_tensor * stack, size_t bytes, int32_t slot) {
    return (const char *) stack->data + slot * bytes;
}

//
// the nodes
//

// Steps that the rows of a part's A are computed in.
static int64_t n_steps(const alora_fused::part & part, int32_t slot) {
    return (part.target->slot_rank[slot] + DOT_STEP - 1) / DOT_STEP;
}

// Steps `begin` to `end` of a segment's part `p`.
static void dot_steps(
        const ggml_tensor * dst, const alora_fused::sums & node,
        const alora_segments::segment & segment, size_t p, int64_t begin, int64_t end) {
    const auto &    part  = node.parts[p];
    const int64_t   first = DOT_STEP * begin;
    const int64_t   last  = std::min(part.target->slot_rank[segment.slot], DOT_STEP * end);
    const int32_t * row   = node.segments.row.data() + segment.first;
    const float *   x[SEGMENT_ROWS];
    float *         y[SEGMENT_ROWS];
    for (int32_t t = 0; t < segment.n; ++t) {
        x[t] = (const float *) row_of(dst->src[0], row[t]);
        y[t] = (float *) row_of(dst, row[t]) + part.offset + first;
    }
    const ggml_tensor * stack = dst->src[1 + p];
    const char *        a     = slot_of(stack, part.target->bytes_a(), segment.slot);
    alora_kernels_best().dot(
            stack->type, { a + first * stack->nb[1], stack->ne[0], last - first, segment.n, x, y,
                                 node.segments.scale.data() + segment.first });
}

// y = scale * A x: src[0] is x, then A's stacks. Threads share the rows of all A.
static void compute_sums(ggml_tensor * dst, int ith, int nth, void * userdata) {
    auto &  node  = *(alora_fused::sums *) userdata;
    int64_t n_all = 0;
    for (const auto & segment : node.segments.all) {
        for (const auto & part : node.parts) {
            n_all += n_steps(part, segment.slot);
        }
    }
    node.work.run(n_all, ith, nth, [&](int64_t begin, int64_t end) {
        int64_t at = 0;
        for (const auto & segment : node.segments.all) {
            for (size_t p = 0; p < node.parts.size() && at < end; ++p) {
                const int64_t steps = n_steps(node.parts[p], segment.slot);
                const int64_t from  = std::max((int64_t) 0, begin - at);
                const int64_t to    = std::min(steps, end - at);
                if (from < to) {
                    dot_steps(dst, node, segment, p, from, to);
                }
                at += steps;
            }
        }
    });
}

// What a segment adds to the outputs of tiles `begin` to `end`.
static void add_tiles(
        ggml_tensor * dst, const alora_fused::addition & node,
        const alora_segments::segment & segment, int64_t begin, int64_t end) {
    const alora_target & target = *node.what.target;
    const int64_t        rank   = target.slot_rank[segment.slot];
    if (rank == 0) {
        return;
    }
    const int64_t   first = begin * ALORA_TILE;
    const int64_t   last  = std::min(dst->ne[0], end * ALORA_TILE);
    const int32_t * row   = node.segments.row.data() + segment.first;
    const float *   y[SEGMENT_ROWS];
    float *         out[SEGMENT_ROWS];
    for (int32_t t = 0; t < segment.n; ++t) {
        y[t]   = (const float *) row_of(dst->src[1], row[t]) + node.what.offset;
        out[t] = (float *) row_of(dst, row[t]) + first;
    }
    const ggml_tensor * stack = dst->src[2];
    const char *        b     = slot_of(stack, target.bytes_b(), segment.slot);
    alora_kernels_best().axpy(
            stack->type,
            { b + begin * rank * stack->nb[1], rank, last - first, segment.n, y, out });
}

// dst += B y: src[0] is the base's result, of which dst is a view or else becomes a copy, then y
// and B's stack. Threads share the tiles of B.
static void compute_addition(ggml_tensor * dst, int ith, int nth, void * userdata) {
    auto & node = *(alora_fused::addition *) userdata;
    node.work.run(node.what.target->n_tiles(), ith, nth, [&](int64_t begin, int64_t end) {
        if (dst->data != dst->src[0]->data) {
            const int64_t first = begin * ALORA_TILE;
            const int64_t last  = std::min(dst->ne[0], end * ALORA_TILE);
            for (int64_t i = 0; i < ggml_nrows(dst); ++i) {
                memcpy((float *) row_of(dst, i) + first,
                        (const float *) row_of(dst->src[0], i) + first,
                        (last - first) * sizeof(float));
            }
        }
        for (const auto & segment : node.segments.all) {
            add_tiles(dst, node, segment, begin, end);
        }
    });
}

//
// building them
//

const alora_fused::part * alora_fused::find(
        const alora_target & target, const ggml_tensor * x) const {
    const auto seen = by_input.find(x);
    if (seen == by_input.end()) {
        return nullptr;
    }
    for (const sums * node : seen->second) {
        for (const part & p : node->parts) {
            if (p.target == &target) {
                return &p;
            }
        }
    }
    return nullptr;
}

const alora_fused::part & alora_fused::add_sums(
        const llm_graph_context & graph, const alora_segments & segments,
        const std::vector<const alora_target *> & targets, ggml_tensor * x) {
    sums & node = all_sums.emplace_back(segments);
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
        if (target->cols_a() == x->ne[0] && node.parts.size() < MAX_PARTS) {
            node.parts.push_back({ target, n, nullptr });
            sources.push_back(target->a);
            n += target->rank;
        }
    }
    ggml_tensor * y = ggml_custom_4d(
            ctx, GGML_TYPE_F32, n, ggml_nrows(x), 1, 1, sources.data(), (int) sources.size(),
            compute_sums, GGML_N_TASKS_MAX, &node);
    ggml_set_name(y, "alora_sums");
    for (part & p : node.parts) {
        p.y = y;
    }
    return node.parts.front();
}

ggml_tensor * alora_fused::add_product(
        const llm_graph_context & graph, const alora_segments & segments, const part & what,
        ggml_tensor * res) {
    void *         node      = &additions.emplace_back(segments, what);
    ggml_context * ctx       = graph.ctx0;
    ggml_tensor *  sources[] = { res, what.y, what.target->b };
    // elsewhere than on the CPU the base's result may lie where the CPU cannot write
    ggml_tensor * sum =
            ggml_backend_sched_get_n_backends(graph.sched) == 1
                    ? ggml_custom_inplace(
                              ctx, res, sources + 1, 2, compute_addition, GGML_N_TASKS_MAX, node)
                    : ggml_custom_4d(
                              ctx, GGML_TYPE_F32, res->ne[0], res->ne[1], res->ne[2], res->ne[3],
                              sources, 3, compute_addition, GGML_N_TASKS_MAX, node);
    ggml_set_name(sum, "alora_addition");
    return sum;
}
