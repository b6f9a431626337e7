// What we rely on in upstream's ggml and what could change without a word from the compiler. A check
// that fails after a move to a newer upstream names what to read anew; native/README.md says where each
// is relied upon.
#include "alora-kernels.h"
#include "backend.h"
#include "ggml-cpu.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

static void fill(ggml_tensor * t, float first) {
    std::iota((float *) t->data, (float *) t->data + ggml_nelements(t), first);
}

static void nothing(ggml_tensor *, int, int, void *) {}

//
// nodes: where sources and parameters are
//

static void test_flash_attention() {
    const auto    ctx   = new_context();
    ggml_tensor * q     = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, 64, 3, 4, 1);
    ggml_tensor * k     = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, 64, 8, 2, 1);
    ggml_tensor * v     = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, 32, 8, 2, 1);
    ggml_tensor * mask  = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, 8, 3, 1, 1);
    ggml_tensor * sinks = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 4);
    ggml_tensor * node  = ggml_flash_attn_ext(ctx.get(), q, k, v, mask, 0.5f, 8.0f, 30.0f);
    ggml_flash_attn_ext_add_sinks(node, sinks);
    ggml_flash_attn_ext_set_n_kv_max(node, 77);
    CHECK(ggml_prec_set_acc(node, GGML_PREC_F32));

    CHECK(node->op == GGML_OP_FLASH_ATTN_EXT);
    CHECK(node->src[0] == q && node->src[1] == k && node->src[2] == v);
    CHECK(node->src[3] == mask && node->src[4] == sinks && !node->src[5]);
    CHECK(node->ne[0] == 32 && node->ne[1] == 4 && node->ne[2] == 3 && node->ne[3] == 1);

    float   floats[3];
    int32_t all[GGML_MAX_OP_PARAMS / sizeof(int32_t)];
    memcpy(floats, node->op_params, sizeof(floats));
    memcpy(all, node->op_params, sizeof(all));
    CHECK(floats[0] == 0.5f && floats[1] == 8.0f && floats[2] == 30.0f);
    CHECK(all[3] == GGML_PREC_F32 && all[4] == 77);
    for (size_t i = 5; i < std::size(all); ++i) {
        CHECK(all[i] == 0);  // a parameter we do not know: attention would be computed without it
    }
}

static void test_custom_nodes() {
    const auto    ctx       = new_context();
    ggml_tensor * a         = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 8, 2);
    ggml_tensor * b         = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 4, 2);
    ggml_tensor * sources[] = { a, b };
    int           data      = 0;
    ggml_tensor * node      = ggml_custom_4d(
            ctx.get(), GGML_TYPE_F32, 5, 6, 7, 8, sources, 2, nothing, GGML_N_TASKS_MAX, &data);
    CHECK(node->op == GGML_OP_CUSTOM && node->src[0] == a && node->src[1] == b && !node->src[2]);
    CHECK(node->ne[0] == 5 && node->ne[1] == 6 && node->ne[2] == 7 && node->ne[3] == 8);

    ggml_custom_op_t fun;
    memcpy(&fun, node->op_params, sizeof(fun));
    CHECK(fun == nothing);  // how our attention is told from other nodes

    ggml_tensor * in_place =
            ggml_custom_inplace(ctx.get(), a, sources + 1, 1, nothing, GGML_N_TASKS_MAX, &data);
    CHECK(in_place->op == GGML_OP_CUSTOM && in_place->view_src == a && in_place->data == a->data);
    CHECK(in_place->src[0] == a && in_place->src[1] == b);

    // q, k and v, or gate and up, are one node with x and who sorted the rows; attention has six
    static_assert(GGML_MAX_SRC >= 6);
}

static void test_prec_hints() {
    const auto    ctx = new_context();
    ggml_tensor * w   = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 8, 4);
    ggml_tensor * x   = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 8, 2);
    ggml_tensor * mm  = ggml_mul_mat(ctx.get(), w, x);
    ggml_tensor * sum = ggml_add(ctx.get(), mm, mm);
    ggml_tensor * own = ggml_custom_4d(
            ctx.get(), GGML_TYPE_F32, 4, 2, 1, 1, &mm, 1, nothing, GGML_N_TASKS_MAX, nullptr);
    int32_t before[GGML_MAX_OP_PARAMS / sizeof(int32_t)];
    memcpy(before, own->op_params, sizeof(before));

    // a hint on an adapted product is refused, and must leave the node's own parameters alone
    CHECK(ggml_prec_set_acc(mm, GGML_PREC_F32) && ggml_prec_set_src(mm, GGML_PREC_F32, 1));
    CHECK(!ggml_prec_set_acc(sum, GGML_PREC_F32) && !ggml_prec_set_src(sum, GGML_PREC_F32, 1));
    CHECK(!ggml_prec_set_acc(own, GGML_PREC_F32) && !ggml_prec_set_src(own, GGML_PREC_F32, 1));
    CHECK(memcmp(before, own->op_params, sizeof(before)) == 0);
}

static void test_a_cast_is_a_copy() {
    const auto    ctx   = new_context();
    ggml_tensor * cells = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 8, 4);
    ggml_tensor * cast  = ggml_cast(ctx.get(), cells, GGML_TYPE_F16);
    CHECK(cast->op == GGML_OP_CPY && cast->src[0] == cells && cast->type == GGML_TYPE_F16);
}

//
// types
//

static void test_types() {
    // as Python, adapter files and saved sessions number them
    static_assert(GGML_TYPE_F32 == 0 && GGML_TYPE_F16 == 1 && GGML_TYPE_Q8_0 == 8);
    static_assert(GGML_TYPE_BF16 == 30);
    static_assert(sizeof(ggml_fp16_t) == 2 && sizeof(ggml_bf16_t) == 2);
    CHECK(ggml_blck_size(GGML_TYPE_F16) == 1 && ggml_type_size(GGML_TYPE_F16) == 2);
    CHECK(ggml_blck_size(GGML_TYPE_BF16) == 1 && ggml_type_size(GGML_TYPE_BF16) == 2);
    CHECK(ggml_fp32_to_fp16(-INFINITY) == 0xfc00 && ggml_fp32_to_fp16(0.0f) == 0);
    CHECK(ggml_fp32_to_bf16(1.0f).bits == 0x3f80);

    // Q8_0: an F16 and 32 bytes
    CHECK(ggml_blck_size(GGML_TYPE_Q8_0) == 32 && ggml_type_size(GGML_TYPE_Q8_0) == 34);
    uint8_t        block[34] = {};
    const uint16_t scale     = ggml_fp32_to_fp16(0.5f);
    memcpy(block, &scale, sizeof(scale));
    block[2 + 7] = (uint8_t) -3;
    float values[32];
    ggml_get_type_traits(GGML_TYPE_Q8_0)->to_float(block, values, 32);
    CHECK(values[7] == -1.5f && values[8] == 0.0f);
    CHECK(ggml_get_type_traits(GGML_TYPE_F16)->to_float);
    CHECK(ggml_get_type_traits(GGML_TYPE_BF16)->to_float);
}

//
// operations that unfused adapters and padding are made of
//

static void test_padding_is_zeros_behind(cpu_backend & cpu) {
    const auto    ctx = new_context();
    ggml_tensor * x   = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 4, 3);
    fill(x, 1.0f);
    ggml_tensor * wide = ggml_pad(ctx.get(), x, 2, 1, 0, 0);
    CHECK(cpu.compute(ctx.get(), wide) == GGML_STATUS_SUCCESS);
    CHECK(wide->ne[0] == 6 && wide->ne[1] == 4);
    for (int64_t i = 0; i < 4; ++i) {
        for (int64_t j = 0; j < 6; ++j) {
            const float expected = i < 3 && j < 4 ? ((float *) x->data)[i * 4 + j] : 0.0f;
            CHECK(((float *) wide->data)[i * 6 + j] == expected);
        }
    }
}

// Stacks [n_in, n_out, n], an id for each row: what a mixed batch is made of.
static void test_products_by_id(cpu_backend & cpu) {
    const auto    ctx   = new_context();
    ggml_tensor * stack = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 8, 4, 3);
    ggml_tensor * x     = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 8, 1, 5);
    ggml_tensor * ids   = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, 1, 5);
    fill(stack, -20.0f);
    fill(x, 1.0f);
    const int32_t chosen[] = { 2, 0, 1, 1, 2 };
    memcpy(ids->data, chosen, sizeof(chosen));
    ggml_tensor * result = ggml_mul_mat_id(ctx.get(), stack, x, ids);
    ggml_tensor * one    = ggml_mul_mat(
            ctx.get(),
            ggml_view_2d(ctx.get(), stack, 8, 4, stack->nb[1], 2 * stack->nb[2]),  // a slot's view
            ggml_view_2d(ctx.get(), x, 8, 1, x->nb[2], 4 * x->nb[2]));
    CHECK(result->ne[0] == 4 && result->ne[1] == 1 && result->ne[2] == 5);
    CHECK(cpu.compute(ctx.get(), result, one) == GGML_STATUS_SUCCESS);
    for (int64_t t = 0; t < 5; ++t) {
        for (int64_t i = 0; i < 4; ++i) {
            float sum = 0.0f;
            for (int64_t j = 0; j < 8; ++j) {
                sum += ((float *) stack->data)[(chosen[t] * 4 + i) * 8 + j] *
                       ((float *) x->data)[t * 8 + j];
            }
            CHECK(((float *) result->data)[t * 4 + i] == sum);
            CHECK(t != 4 || ((float *) one->data)[i] == sum);
        }
    }
}

// The experts of a token among the matrices of its slot.
static void test_rows_of_integers(cpu_backend & cpu) {
    const auto    ctx       = new_context();
    ggml_tensor * table     = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_I32, 1, 4, 2);
    ggml_tensor * experts   = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, 3, 2);
    const int32_t numbers[] = { 8, 9, 10, 11, 20, 21, 22, 23 }, chosen[] = { 3, 0, 1, 2, 2, 0 };
    memcpy(table->data, numbers, sizeof(numbers));
    memcpy(experts->data, chosen, sizeof(chosen));
    ggml_tensor * ids = ggml_get_rows(ctx.get(), table, experts);
    CHECK(ids->type == GGML_TYPE_I32 && ids->ne[0] == 1 && ids->ne[1] == 3 && ids->ne[2] == 2);
    CHECK(cpu.compute(ctx.get(), ids) == GGML_STATUS_SUCCESS);
    const int32_t expected[] = { 11, 8, 9, 22, 22, 20 };
    CHECK(memcmp(ids->data, expected, sizeof(expected)) == 0);
}

//
// how nodes are computed
//

struct calls {
    static constexpr int N = 4;

    std::array<std::atomic<int>, N> by_thread{};
    std::atomic<int>                n{ 0 };
    std::atomic<int>                n_wrong{ 0 };
    int                             n_before = 0;  // of another node, all of whose calls ended
    calls *                         before   = nullptr;  // that node's
    std::atomic<bool> *             stop     = nullptr;

    void call(int ith, int nth) {
        n_wrong += nth != N || ith < 0 || ith >= N || (before && before->n != N);
        by_thread[ith % N]++;
        std::this_thread::sleep_for(std::chrono::milliseconds(ith));
        if (stop) {
            *stop = true;
        }
        n++;
    }
};

static void count(ggml_tensor *, int ith, int nth, void * userdata) {
    ((calls *) userdata)->call(ith, nth);
}

static ggml_tensor * counting(ggml_context * ctx, ggml_tensor * after, int n_tasks, calls & calls) {
    return ggml_custom_4d(ctx, GGML_TYPE_F32, 1, 1, 1, 1, &after, 1, count, n_tasks, &calls);
}

// Whatever number of tasks it is told; our chunks are handed out by threads that all come, and a
// routing node leaves all but the first. No node begins before all threads have left the one before.
static void test_every_thread_calls_each_node_once(cpu_backend & cpu) {
    const auto    ctx = new_context();
    ggml_tensor * x   = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 1);
    calls         first, second;
    second.before       = &first;
    ggml_tensor * one   = counting(ctx.get(), x, GGML_N_TASKS_MAX, first);
    ggml_tensor * other = counting(ctx.get(), one, 1, second);
    CHECK(cpu.compute(ctx.get(), other) == GGML_STATUS_SUCCESS);
    for (const calls * node : { &first, &second }) {
        CHECK(node->n == calls::N && node->n_wrong == 0);
        for (const auto & n : node->by_thread) {
            CHECK(n == 1);
        }
    }
}

// So a node's counters are where they began whenever a computation ends.
static void test_an_abort_falls_between_nodes(cpu_backend & cpu) {
    auto set = (ggml_backend_set_abort_callback_t) cpu.function("ggml_backend_set_abort_callback");
    CHECK(set);
    std::atomic<bool> stop{ false };
    set(cpu.backend.get(), [](void * data) { return ((std::atomic<bool> *) data)->load(); }, &stop);

    const auto    ctx = new_context();
    ggml_tensor * x   = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 1);
    calls         first, second;
    first.stop = &stop;
    ggml_tensor * last =
            counting(ctx.get(), counting(ctx.get(), x, GGML_N_TASKS_MAX, first), 1, second);
    CHECK(cpu.compute(ctx.get(), last) == GGML_STATUS_ABORTED);
    CHECK(first.n == calls::N && first.n_wrong == 0 && second.n == 0);
    set(cpu.backend.get(), nullptr, nullptr);
}

//
// backends, buffers and the scheduler
//

static void test_no_other_backend_takes_custom_nodes(const cpu_backend & cpu) {
    const auto    ctx = new_context();
    ggml_tensor * x   = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 1);
    calls         none;
    ggml_tensor * node = counting(ctx.get(), x, GGML_N_TASKS_MAX, none);
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        const ggml_backend_dev_t device = ggml_backend_dev_get(i);
        CHECK(ggml_backend_dev_supports_op(device, node) == (device == cpu.device));
    }
}

static bool cpu_has_avx512() {
#ifdef GGML_BACKEND_DL  // the backend that suits the processor best was loaded, and is linked by nobody
    return alora_kernels_avx512() && alora_kernels_all()[0] == alora_kernels_avx512();
#else
    return ggml_cpu_has_avx512() != 0;
#endif
}

static void test_memory_of_the_cpu(const cpu_backend & cpu) {
    const ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(cpu.device);
    CHECK(ggml_backend_buft_is_host(buft));
    auto extra =
            (ggml_backend_dev_get_extra_bufts_t) cpu.function("ggml_backend_dev_get_extra_bufts");
    CHECK(extra);
    bool repack = false;
    for (auto * other = extra(cpu.device); other && *other; ++other) {
        CHECK(*other != buft);
        repack |= strcmp(ggml_backend_buft_name(*other), "CPU_REPACK") == 0;
    }
    auto features = (ggml_backend_get_features_t) cpu.function("ggml_backend_get_features");
    CHECK(features);
    bool avx512 = false, has_repack = false;
    for (auto * f = features(ggml_backend_dev_backend_reg(cpu.device)); f->name; ++f) {
        avx512 |= strcmp(f->name, "AVX512") == 0;
        has_repack |= strcmp(f->name, "REPACK") == 0;
    }
    CHECK(avx512 == cpu_has_avx512());  // how wide rows of B are padded
    CHECK(repack == has_repack);        // which weights' products are padded
}

static void test_what_the_scheduler_allocates(cpu_backend & cpu) {
    ggml_backend_t         backends[] = { cpu.backend.get() };
    ggml_backend_sched_ptr sched(
            ggml_backend_sched_new(backends, nullptr, 1, GGML_DEFAULT_GRAPH_SIZE, false, true));
    CHECK(ggml_backend_sched_get_n_backends(sched.get()) == 1);

    const ggml_context_ptr ctx(ggml_init({ 1 << 20, nullptr, /*.no_alloc =*/true }));
    const auto             input = [&] {
        ggml_tensor * t = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 64, 4);
        ggml_set_input(t);
        return t;
    };
    ggml_tensor * x      = input();
    ggml_tensor * unused = input();
    ggml_tensor * base   = ggml_scale(ctx.get(), x, 2.0f);
    calls         none;
    ggml_tensor * y = ggml_custom_4d(
            ctx.get(), GGML_TYPE_F32, 64, 4, 1, 1, &base, 1, count, GGML_N_TASKS_MAX, &none);
    ggml_tensor * sum   = ggml_custom_inplace(ctx.get(), base, &y, 1, count, 1, &none);
    ggml_tensor * end   = ggml_scale(ctx.get(), sum, 2.0f);
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, end);
    CHECK(ggml_backend_sched_alloc_graph(sched.get(), graph));

    CHECK(x->buffer && !unused->buffer);           // an input that nothing reads is not filled
    CHECK(y->data != base->data);                  // a custom node never writes over its sources
    CHECK(sum->data == base->data && base->data);  // unless it is asked to
    CHECK(ggml_backend_buffer_is_host(base->buffer));
    const auto at = [&](const ggml_tensor * t) {
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
            if (ggml_graph_node(graph, i) == t) {
                return i;
            }
        }
        return -1;
    };
    CHECK(0 <= at(base) && at(base) < at(y) && at(y) < at(sum) && at(sum) < at(end));
}

int main() {
    cpu_backend cpu(calls::N);
    test_flash_attention();
    test_custom_nodes();
    test_prec_hints();
    test_a_cast_is_a_copy();
    test_types();
    test_padding_is_zeros_behind(cpu);
    test_products_by_id(cpu);
    test_rows_of_integers(cpu);
    test_every_thread_calls_each_node_once(cpu);
    test_an_abort_falls_between_nodes(cpu);
    test_no_other_backend_takes_custom_nodes(cpu);
    test_memory_of_the_cpu(cpu);
    test_what_the_scheduler_allocates(cpu);
    return 0;
}
