#include "alora-attention.h"

#include "alora-host.h"
#include "alora-kernels.h"
#include "alora-segments.h"
#include "alora-workspace.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// Keys in a split at least, so that making its queries ready costs little, and chunks that a node
// should have at least, so that many threads have something to do. Results depend on these, and so
// not on the number of threads.
static constexpr int64_t MIN_SPLIT  = 512;
static constexpr int64_t MIN_CHUNKS = 64;

// Rows in a block at most: with more, their results so far no longer fit into the cache.
static constexpr int64_t MAX_ROWS   = 256;
static constexpr int64_t MAX_TOKENS = 64;

//
// what can be computed here, and when it pays
//

enum source { Q, K, V, MASK, SINKS };

namespace {

// The parameters of upstream's node.
struct parameters {
    float   scale;
    float   max_bias;
    float   soft_cap;
    int32_t precision;  // ours is F32
    int32_t n_kv_max;   // a hint
    int32_t unknown[GGML_MAX_OP_PARAMS / sizeof(int32_t) - 5];
};

}  // namespace

static parameters parameters_of(const ggml_tensor * stock) {
    static_assert(sizeof(parameters) == sizeof(stock->op_params));
    parameters params;
    memcpy(&params, stock->op_params, sizeof(params));
    return params;
}

// The cells themselves, where upstream narrows a copy of them.
static ggml_tensor * cells_of(ggml_tensor * t) {
    return t->op == GGML_OP_CPY && t->src[0]->type == GGML_TYPE_F32 ? t->src[0] : t;
}

static bool can_read(const ggml_tensor * cells) {
    const bool known = cells->type == GGML_TYPE_F32 || ggml_get_type_traits(cells->type)->to_float;
    const int64_t step = std::max((int64_t) 16, ggml_blck_size(cells->type));

    const ggml_tensor * owner = cells->view_src ? cells->view_src : cells;
    const bool on_cpu = owner->buffer ? alora_on_cpu(ggml_backend_buffer_get_type(owner->buffer))
                                      : owner->data != nullptr;
    return known && on_cpu && cells->nb[0] == ggml_type_size(cells->type) &&
           cells->ne[0] % step == 0 && cells->ne[0] <= 256;
}

static bool can_compute(const ggml_tensor * stock, const ggml_tensor * k, const ggml_tensor * v) {
    const ggml_tensor * q      = stock->src[Q];
    const ggml_tensor * mask   = stock->src[MASK];
    const ggml_tensor * sinks  = stock->src[SINKS];
    const parameters    params = parameters_of(stock);
    const bool          known  = std::all_of(
            std::begin(params.unknown), std::end(params.unknown), [](int32_t i) { return i == 0; });
    return known && can_read(k) && can_read(v) && q->type == GGML_TYPE_F32 &&
           q->nb[0] == sizeof(float) && k->ne[2] == v->ne[2] && q->ne[2] % k->ne[2] == 0 &&
           q->ne[2] / k->ne[2] <= MAX_ROWS &&
           (!mask || (mask->type == GGML_TYPE_F16 && mask->ne[2] == 1 && mask->ne[0] >= k->ne[1] &&
                             mask->ne[1] >= q->ne[1])) &&
           (!sinks || sinks->type == GGML_TYPE_F32);
}

// Whether this is faster than upstream's node, one of whose kernels goes through the cache once per
// query, the other, from 64 tokens on, once per 64 of a head. With vectors of 256 bits and more it is
// in every case of benchmarks/attention.py, from 1 token to 512, one thread and two. Packing the
// queries of a group into upstream's second kernel, which is what could be done with its nodes alone,
// was found to gain 2x at most and to lose below 32 rows.
static bool pays(const ggml_tensor * stock, const ggml_tensor * k) {
    const int64_t group = stock->src[Q]->ne[2] / k->ne[2];
    return stock->src[Q]->ne[1] * group >= alora_kernels_best().attend_rows;
}

//
// the node
//

static char * at(const ggml_tensor * t, int64_t i1, int64_t i2, int64_t i3) {
    return (char *) t->data + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3];
}

// A source of the node; in place of upstream's result these come behind it.
static const ggml_tensor * source_of(
        const ggml_tensor * dst, const alora_attention::node & node, source which) {
    return dst->src[which + (node.only ? 1 : 0)];
}

static int64_t n_tokens_of(const alora_attention::node & node) {
    return node.only ? (int64_t) node.only->row.size() : node.n_tokens;
}

static int64_t n_blocks_of(const alora_attention::node & node) {
    return (n_tokens_of(node) + node.tokens_at_once - 1) / node.tokens_at_once;
}

namespace {

// Some tokens beside one K/V head: the rows of chunks that differ in their keys.
struct block {
    const alora_attention::node & node;

    int64_t stream;
    int64_t head;   // of K and V
    int64_t first;  // of the tokens
    int64_t n_tokens;

    block(const ggml_tensor * dst, const alora_attention::node & node, int64_t i) : node(node) {
        const int64_t n_heads  = source_of(dst, node, K)->ne[2];
        const int64_t n_blocks = n_blocks_of(node);
        first                  = i % n_blocks * node.tokens_at_once;
        n_tokens               = std::min(node.tokens_at_once, n_tokens_of(node) - first);
        head                   = i / n_blocks % n_heads;
        stream                 = i / n_blocks / n_heads;
    }

    int64_t token(int64_t t) const { return node.only ? node.only->row[first + t] : first + t; }
};

}  // namespace

static float * partial_of(const alora_attention::node & node, int64_t chunk) {
    return node.space->data() + node.n_threads * node.scratch + chunk * node.partial;
}

static void attend(
        const ggml_tensor * dst, const alora_attention::node & node, int64_t chunk, int ith) {
    const block         here(dst, node, chunk / node.n_splits);
    const int64_t       first = chunk % node.n_splits * node.keys_in_a_split;
    const ggml_tensor * q     = source_of(dst, node, Q);
    const ggml_tensor * k     = source_of(dst, node, K);
    const ggml_tensor * v     = source_of(dst, node, V);
    const ggml_tensor * mask  = source_of(dst, node, MASK);

    const float *    rows[MAX_ROWS];
    const uint16_t * masks[MAX_TOKENS];
    for (int64_t t = 0; t < here.n_tokens; ++t) {
        const int64_t token = here.token(t);
        for (int64_t g = 0; g < node.group; ++g) {
            rows[t * node.group + g] =
                    (const float *) at(q, token, here.head * node.group + g, here.stream);
        }
        if (mask) {
            masks[t] = (const uint16_t *) at(mask, token, 0, here.stream % mask->ne[3]) + first;
        }
    }
    alora_kernels_best().attend(
            {
                    { at(k, first, here.head, here.stream), k->nb[1], k->type, k->ne[0],
                            ggml_get_type_traits(k->type)->to_float },
                    { at(v, first, here.head, here.stream), v->nb[1], v->type, v->ne[0],
                            ggml_get_type_traits(v->type)->to_float },
                    std::min(node.keys_in_a_split, k->ne[1] - first),
                    here.n_tokens,
                    node.group,
                    rows,
                    mask ? masks : nullptr,
                    node.slopes.empty() ? nullptr : node.slopes.data() + here.head * node.group,
                    node.scale,
                    node.soft_cap,
                    node.space->data() + ith * node.scratch,
                    partial_of(node, chunk),
            });
}

static void combine(ggml_tensor * dst, const alora_attention::node & node, int64_t i) {
    const block         here(dst, node, i);
    const ggml_tensor * sinks = source_of(dst, node, SINKS);
    float *             rows[MAX_ROWS];
    float               sink[MAX_ROWS];
    const int64_t       n_rows = here.n_tokens * node.group;
    for (int64_t r = 0; r < n_rows; ++r) {
        const int64_t head = here.head * node.group + r % node.group;
        rows[r]            = (float *) at(dst, head, here.token(r / node.group), here.stream);
        sink[r]            = sinks ? ((const float *) sinks->data)[head] : 0.0f;
    }
    alora_kernels_best().combine(
            { partial_of(node, i * node.n_splits), node.n_splits, n_rows, dst->ne[0],
                    sinks ? sink : nullptr, rows, node.partial });
}

// src: q, k, v, mask, sinks, as upstream's node has them; before them that node itself, if it computes
// the tokens of the base.
static void compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    auto & node = *(alora_attention::node *) userdata;
    nth         = std::min(nth, node.n_threads);  // each has its scratch
    if (ith >= nth) {
        return;
    }
    const ggml_tensor * k        = source_of(dst, node, K);
    const int64_t       n_chunks = k->ne[3] * k->ne[2] * n_blocks_of(node) * node.n_splits;
    node.chunks.each(n_chunks, ith, nth, [&](int64_t chunk) {
        attend(dst, node, chunk, ith);
        const int64_t          block = chunk / node.n_splits;
        std::atomic<int64_t> & done  = node.done[block];
        if (done.fetch_add(1, std::memory_order_acq_rel) == node.n_splits - 1) {
            done.store(0, std::memory_order_relaxed);
            combine(dst, node, block);
        }
    });
}

// src[0] is a mask; the rows of the segments' tokens become -inf.
static void compute_without(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const std::vector<int32_t> & hidden = ((const alora_segments *) userdata)->row;
    for (int64_t i = ith; i < dst->ne[1]; i += nth) {
        uint16_t * to = (uint16_t *) at(dst, i, 0, 0);
        if (std::find(hidden.begin(), hidden.end(), (int32_t) i) == hidden.end()) {
            memcpy(to, at(dst->src[0], i, 0, 0), dst->ne[0] * sizeof(uint16_t));
        } else {
            std::fill_n(to, dst->ne[0], ALORA_HIDDEN);
        }
    }
}

// Told by its function, which ggml keeps first: upstream's callback may give nodes other names.
bool alora_attention::is_node(const ggml_tensor & t) {
    ggml_custom_op_t fun;
    memcpy(&fun, t.op_params, sizeof(fun));
    return t.op == GGML_OP_CUSTOM && fun == compute;
}

//
// building it
//

// As upstream has them, ggml_flash_attn_ext() and ggml_soft_max_ext() alike.
static std::vector<float> slopes_of(float max_bias, int64_t n_head) {
    std::vector<float> slopes;
    if (max_bias > 0.0f) {
        const int64_t n_even = (int64_t) 1 << (int) std::floor(std::log2((double) n_head));
        const float   even   = std::pow(2.0f, -max_bias / n_even);
        const float   odd    = std::pow(2.0f, -max_bias / 2.0f / n_even);
        for (int64_t h = 0; h < n_head; ++h) {
            slopes.push_back(
                    h < n_even ? std::pow(even, (float) (h + 1))
                               : std::pow(odd, (float) (2 * (h - n_even) + 1)));
        }
    }
    return slopes;
}

// Divides the work; false if there is no memory for it.
static bool divide(alora_attention::node & node, const ggml_tensor * k, const ggml_tensor * v) {
    const int64_t most  = std::max((int64_t) 1, std::min(MAX_TOKENS, MAX_ROWS / node.group));
    const int64_t n     = (node.n_tokens + most - 1) / most;  // blocks of a head
    node.tokens_at_once = (node.n_tokens + n - 1) / n;

    const int64_t n_blocks = k->ne[3] * k->ne[2] * n;
    const int64_t wanted   = (MIN_CHUNKS + n_blocks - 1) / n_blocks;
    const int64_t n_tiles  = (k->ne[1] + ALORA_KEYS - 1) / ALORA_KEYS;
    node.keys_in_a_split   = std::max(MIN_SPLIT, (n_tiles + wanted - 1) / wanted * ALORA_KEYS);
    node.n_splits          = (k->ne[1] + node.keys_in_a_split - 1) / node.keys_in_a_split;
    node.done.reset(new std::atomic<int64_t>[n_blocks]());

    const int64_t n_rows = node.tokens_at_once * node.group;
    node.scratch         = GGML_PAD(alora_scratch_size(n_rows, k->ne[0], v->ne[0]), 16);
    node.partial         = alora_partial_size(n_rows, v->ne[0]);
    return node.space->reserve(
            node.n_threads * node.scratch + n_blocks * node.n_splits * node.partial);
}

ggml_tensor * alora_attention::build(
        const alora_host & host, ggml_tensor * stock, alora_workspace & space, int n_threads,
        bool choose, const alora_segments * only) {
    ggml_tensor * k = cells_of(stock->src[K]);
    ggml_tensor * v = cells_of(stock->src[V]);
    if (!can_compute(stock, k, v) || (choose && !pays(stock, k))) {
        return stock;
    }
    ggml_tensor * mask = stock->src[MASK];
    if (only && (!mask || stock->ne[3] != 1)) {
        return stock;
    }

    const parameters params = parameters_of(stock);
    node &           node   = nodes.emplace_back();
    node.space              = &space;
    node.only               = only;
    node.scale              = params.scale;
    node.slopes             = slopes_of(params.max_bias, stock->src[Q]->ne[2]);
    node.soft_cap           = params.soft_cap;
    node.n_tokens           = stock->src[Q]->ne[1];
    node.group              = stock->src[Q]->ne[2] / k->ne[2];
    node.n_threads          = n_threads;
    if (!divide(node, k, v)) {
        nodes.pop_back();
        return stock;
    }

    const alora_host::function       attend  = { compute, &node, "alora_attention" };
    const std::vector<ggml_tensor *> sources = { stock->src[Q], k, v, mask, stock->src[SINKS] };
    if (only) {
        stock->src[MASK] = without(host, *only, mask);
        host.take(stock);
        return host.in_place(attend, stock, sources);
    }
    return host.node(
            attend, GGML_TYPE_F32, { stock->ne[0], stock->ne[1], stock->ne[2], stock->ne[3] },
            sources);
}

ggml_tensor * alora_attention::without(
        const alora_host & host, const alora_segments & segments, ggml_tensor * mask) {
    ggml_tensor *& made = masks[mask];
    if (!made) {
        made = host.node(
                { compute_without, const_cast<alora_segments *>(&segments), "alora_mask" },
                mask->type, { mask->ne[0], mask->ne[1], mask->ne[2], mask->ne[3] }, { mask });
    }
    return made;
}
