// Our attention node against upstream's, as part of a graph: parameters, ALiBi's slopes, caps, sinks,
// masks and splits mean the same to both; and what makes us leave upstream's node where it is.
#include "alora-attention.h"
#include "alora-host.h"
#include "alora-segments.h"
#include "alora-workspace.h"
#include "backend.h"

#include <climits>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

static std::mt19937 rng(17);

struct problem {
    int64_t d = 32, n_keys = 200, n_tokens = 5, n_head = 12, n_head_kv = 4;
    float   scale = 0.2f, max_bias = 0.0f, soft_cap = 0.0f;
    bool    sinks = false;

    ggml_context_ptr ctx = new_context(64 << 20);

    ggml_tensor * random(ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2) const {
        ggml_tensor * t = ggml_new_tensor_3d(ctx.get(), type, ne0, ne1, ne2);
        for (int64_t i = 0; i < ggml_nelements(t); ++i) {
            const float value = (float) ((int) (rng() % 2001) - 1000) / 500.0f;
            if (type == GGML_TYPE_F32) {
                ((float *) t->data)[i] = value;
            } else {
                ((ggml_fp16_t *) t->data)[i] = ggml_fp32_to_fp16(value);
            }
        }
        return t;
    }

    // Upstream's node; token t sees up to key n_keys - n_tokens + t, at distances if there is a bias.
    ggml_tensor * stock() const {
        ggml_tensor * mask = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, n_keys, n_tokens);
        for (int64_t t = 0; t < n_tokens; ++t) {
            const int64_t last = n_keys - n_tokens + t;
            for (int64_t k = 0; k < n_keys; ++k) {
                const float distance = max_bias > 0.0f ? (float) (k - last) / 16.0f : 0.0f;
                ((ggml_fp16_t *) mask->data)[t * n_keys + k] =
                        ggml_fp32_to_fp16(k > last ? -INFINITY : distance);
            }
        }
        ggml_tensor * node = ggml_flash_attn_ext(
                ctx.get(), random(GGML_TYPE_F32, d, n_tokens, n_head),
                random(GGML_TYPE_F16, d, n_keys, n_head_kv),
                random(GGML_TYPE_F16, d, n_keys, n_head_kv), mask, scale, max_bias, soft_cap);
        if (sinks) {
            ggml_flash_attn_ext_add_sinks(node, random(GGML_TYPE_F32, n_head, 1, 1));
        }
        ggml_prec_set_acc(node, GGML_PREC_F32);
        return node;
    }
};

static float difference(const ggml_tensor * a, const ggml_tensor * b, int64_t token) {
    float         largest = 0.0f;
    const int64_t n       = a->ne[0] * a->ne[1];
    for (int64_t i = token * n; i < (token + 1) * n; ++i) {
        largest = std::max(largest, std::fabs(((float *) a->data)[i] - ((float *) b->data)[i]));
    }
    return largest;
}

// Upstream's kernel adds up in F16, hence the tolerance.
static void compare(cpu_backend & cpu, const problem & p) {
    alora_workspace space;
    alora_attention nodes;
    ggml_tensor *   stock = p.stock();
    ggml_tensor *   ours  = nodes.build(p.ctx.get(), stock, space, 4, false, nullptr);
    CHECK(ours != stock && alora_attention::is_node(*ours) && !alora_attention::is_node(*stock));
    ggml_set_name(ours, "renamed");
    CHECK(alora_attention::is_node(*ours));
    CHECK(cpu.compute(p.ctx.get(), stock, ours) == GGML_STATUS_SUCCESS);
    for (int64_t t = 0; t < p.n_tokens; ++t) {
        CHECK(difference(stock, ours, t) < 5e-3f);
    }
}

static void test_the_same_as_upstreams(cpu_backend & cpu) {
    compare(cpu, {});
    for (const int64_t n_keys : { 1000, 1100, 3000 }) {  // splits, the last of them cut
        problem p;
        p.n_keys = n_keys;
        compare(cpu, p);
    }
    for (const int64_t n_head : { 4, 12, 16 }) {  // 12 is no power of two
        problem p;
        p.n_head   = n_head;
        p.max_bias = 8.0f;
        compare(cpu, p);
    }
    problem capped;
    capped.soft_cap = 3.0f;
    compare(cpu, capped);
    problem with_sinks;
    with_sinks.sinks = true;
    compare(cpu, with_sinks);
    problem many;
    many.n_tokens = 70;
    compare(cpu, many);
}

// Some tokens are ours, the others' bits stay upstream's.
static void test_some_tokens(cpu_backend & cpu) {
    problem         p;
    alora_workspace space;
    alora_attention nodes;
    alora_segments  adapted;
    adapted.fill({ {}, { 1, 1.0f }, {}, { 2, 1.0f }, {} });
    ggml_tensor * whole = p.stock();
    ggml_tensor * stock = ggml_flash_attn_ext(
            p.ctx.get(), whole->src[0], whole->src[1], whole->src[2], whole->src[3], p.scale, 0, 0);
    ggml_tensor * ours = nodes.build(p.ctx.get(), stock, space, 4, false, &adapted);
    CHECK(ours->view_src == stock);
    CHECK(cpu.compute(p.ctx.get(), whole, ours) == GGML_STATUS_SUCCESS);
    for (int64_t t = 0; t < p.n_tokens; ++t) {
        const bool is_adapted = t == 1 || t == 3;
        CHECK(is_adapted ? difference(whole, ours, t) < 5e-3f : difference(whole, ours, t) == 0.0f);
    }
}

static void test_what_stays_upstreams() {
    alora_workspace space;
    alora_attention nodes;
    const problem   p;
    const auto      left = [&](ggml_tensor * stock) {
        return nodes.build(p.ctx.get(), stock, space, 4, false, nullptr) == stock;
    };
    CHECK(!left(p.stock()));

    ggml_tensor * unknown                                        = p.stock();
    unknown->op_params[GGML_MAX_OP_PARAMS / sizeof(int32_t) - 1] = 1;
    CHECK(left(unknown));  // a parameter of a newer upstream

    ggml_tensor * elsewhere = p.stock();
    elsewhere->src[1]->data = nullptr;
    CHECK(left(elsewhere));  // cells that are not in the CPU's memory

    ggml_tensor * odd  = p.stock();
    odd->src[2]->nb[0] = 4;
    CHECK(left(odd));
}

// No memory: upstream's node, and the room is as it was.
static void test_no_memory(cpu_backend & cpu) {
    alora_workspace space;
    CHECK(space.reserve(1000) && space.size() == 1000 && (uintptr_t) space.data() % 64 == 0);
    const float *    before = space.data();
    volatile int64_t huge   = (int64_t) 1 << 59;
    CHECK(!space.reserve(huge) && space.size() == 1000 && space.data() == before);
    CHECK(space.reserve(10) && space.data() == before);

    const problem   p;
    alora_attention nodes;
    ggml_tensor *   stock = p.stock();
    ggml_tensor *   mask  = stock->src[3];
    alora_segments  adapted;
    adapted.fill({ { 1, 1.0f }, {}, {}, {}, {} });
    CHECK(nodes.build(p.ctx.get(), stock, space, INT_MAX, false, &adapted) == stock);
    CHECK(stock->src[3] == mask);
    CHECK(cpu.compute(p.ctx.get(), stock) == GGML_STATUS_SUCCESS);
}

int main() {
    cpu_backend cpu(4);
    test_the_same_as_upstreams(cpu);
    test_some_tokens(cpu);
    test_what_stays_upstreams();
    test_no_memory(cpu);
    return 0;
}
