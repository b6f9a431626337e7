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
    bool    sinks  = false;
    int64_t window = INT_MAX;  // keys that a token sees at most

    ggml_type type = GGML_TYPE_F16;  // of K and V

    ggml_context_ptr ctx = new_context(64 << 20);

    ggml_tensor * random(ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2) const {
        ggml_tensor *      t = ggml_new_tensor_3d(ctx.get(), type, ne0, ne1, ne2);
        std::vector<float> values(ggml_nelements(t));
        for (float & value : values) {
            value = (float) ((int) (rng() % 2001) - 1000) / 500.0f;
        }
        ggml_quantize_chunk(type, values.data(), t->data, 0, ne1 * ne2, ne0, nullptr);
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
                        ggml_fp32_to_fp16(k > last || k <= last - window ? -INFINITY : distance);
            }
        }
        ggml_tensor * node = ggml_flash_attn_ext(
                ctx.get(), random(GGML_TYPE_F32, d, n_tokens, n_head),
                random(type, d, n_keys, n_head_kv), random(type, d, n_keys, n_head_kv), mask, scale,
                max_bias, soft_cap);
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

// What a tensor's rows hold.
static std::vector<float> values_of(const ggml_tensor * t) {
    std::vector<float> values(ggml_nelements(t));
    const auto         widen = ggml_get_type_traits(t->type)->to_float;
    if (t->type == GGML_TYPE_F32) {
        memcpy(values.data(), t->data, values.size() * sizeof(float));
    } else {
        widen(t->data, values.data(), (int64_t) values.size());
    }
    return values;
}

// Upstream's node in float64.
static std::vector<double> exact(const problem & p, const ggml_tensor * stock) {
    const std::vector<float> q = values_of(stock->src[0]), k = values_of(stock->src[1]),
                             v = values_of(stock->src[2]), mask = values_of(stock->src[3]);
    const std::vector<float> sinks =
            p.sinks ? values_of(stock->src[4]) : std::vector<float>(p.n_head, -INFINITY);
    const double        n_even = std::exp2(std::floor(std::log2((double) p.n_head)));
    std::vector<double> out(p.n_tokens * p.n_head * p.d), weights(p.n_keys);
    for (int64_t t = 0; t < p.n_tokens; ++t) {
        for (int64_t h = 0; h < p.n_head; ++h) {
            const double  steps = h < n_even ? h + 1 : h - n_even + 0.5;
            const double  slope = std::exp2(-p.max_bias / n_even * steps);
            const int64_t first = h / (p.n_head / p.n_head_kv) * p.n_keys;
            double        top   = sinks[h];
            for (int64_t i = 0; i < p.n_keys; ++i) {
                double s = 0.0;
                for (int64_t j = 0; j < p.d; ++j) {
                    s += (double) q[(h * p.n_tokens + t) * p.d + j] * k[(first + i) * p.d + j];
                }
                s *= p.scale;
                s          = p.soft_cap > 0.0f ? p.soft_cap * std::tanh(s / p.soft_cap) : s;
                weights[i] = s + (p.max_bias > 0.0f ? slope : 1.0) * mask[t * p.n_keys + i];
                top        = std::max(top, weights[i]);
            }
            double sum = std::exp(sinks[h] - top);
            for (double & weight : weights) {
                sum += weight = std::exp(weight - top);
            }
            for (int64_t j = 0; j < p.d; ++j) {
                double & value = out[(t * p.n_head + h) * p.d + j];
                for (int64_t i = 0; i < p.n_keys; ++i) {
                    value += weights[i] * v[(first + i) * p.d + j] / sum;
                }
            }
        }
    }
    return out;
}

static double rms(const ggml_tensor * t, const std::vector<double> & exact) {
    double sum = 0.0;
    for (size_t i = 0; i < exact.size(); ++i) {
        sum += std::pow(((float *) t->data)[i] - exact[i], 2.0);
    }
    return std::sqrt(sum / exact.size());
}

// Ours is exact but for the last bits of F32, whatever the cells and the masks; upstream's rounds queries
// to the cells' type and adds up in F16, except that F32 and, from 64 tokens on, F16 stay F32 there too.
static void compare(cpu_backend & cpu, const problem & p) {
    alora_workspace space;
    alora_attention nodes;
    ggml_tensor *   stock = p.stock();
    ggml_tensor *   ours  = nodes.build(p.ctx.get(), stock, space, 4, false, nullptr);
    CHECK(ours != stock && alora_attention::is_node(*ours) && !alora_attention::is_node(*stock));
    ggml_set_name(ours, "renamed");
    CHECK(alora_attention::is_node(*ours));
    CHECK(cpu.compute(p.ctx.get(), stock, ours) == GGML_STATUS_SUCCESS);
    const std::vector<double> truth = exact(p, stock);
    CHECK(rms(ours, truth) < 1e-6);
    CHECK(rms(stock, truth) < 3e-2);  // so it is the same that they compute
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
    for (const int64_t n_tokens : { 1, 2, 70, 130 }) {  // 70: upstream's other kernel
        for (const ggml_type type :
                { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                        GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL }) {
            for (const int64_t window : { 40, INT_MAX }) {
                problem p;
                p.n_tokens = n_tokens;
                p.type     = type;
                p.window   = window;
                p.d        = n_tokens == 2 ? 128 : 64;
                compare(cpu, p);
            }
        }
    }
    problem alone;  // a conversation's first token
    alone.n_tokens = alone.n_keys = 1;
    compare(cpu, alone);
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

    problem p;
    p.d = 256;  // with so many threads more than any process can address
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
