// What we rely on in upstream's libllama and what could change without a word from the compiler: how
// contexts reserve, build, reuse and abort graphs, what a graph's nodes are, what the cache's functions
// mean. A check that fails after a move to a newer upstream names what to read anew.
#include "alora-graph.h"
#include "alora-steer.h"
#include "alora.h"
#include "llama-context.h"
#include "tiny_context.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

// The plan of a batch travels in the graph's own copy; a reference would dangle.
static_assert(std::is_same_v<decltype(llm_graph_params::cparams), llama_cparams>);
// Tokens of several sequences are told apart by these.
static_assert(LLAMA_MAX_SEQ == 256);

static int index_of(ggml_cgraph * graph, const ggml_tensor * t) {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        if (ggml_graph_node(graph, i) == t) {
            return i;
        }
    }
    return -1;
}

static int count(ggml_cgraph * graph, const char * name) {
    int n = 0;
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        n += strncmp(ggml_graph_node(graph, i)->name, name, strlen(name)) == 0;
    }
    return n;
}

static int count(ggml_cgraph * graph, ggml_op op) {
    int n = 0;
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        n += ggml_graph_node(graph, i)->op == op;
    }
    return n;
}

// A reserve is told from a batch by whose result it builds into; the last is the longest batch, with
// as many outputs as there may be, and batches reserve nothing.
static void test_reserving(const tiny_llama & base) {
    context           ours(base);
    const alora_stats before = ours.stats();
    CHECK(before.n_reserves >= 2 && before.n_graphs == 0);
    llm_graph_result * reserved = alora_access::reserved(ours);
    CHECK(reserved && reserved != alora_access::last(ours));
    CHECK(reserved->get_inp_tokens()->ne[0] == 64);
    CHECK(reserved->get_logits()->ne[1] == 64);
    CHECK(ggml_backend_sched_get_n_backends(alora_access::sched(ours)) == 1);

    ours.decode(reading(20));
    CHECK(alora_access::last(ours) != alora_access::reserved(ours));
    const alora_stats after = ours.stats();
    CHECK(after.n_reserves == before.n_reserves && after.n_graphs == 1);
    CHECK(after.compute_bytes == before.compute_bytes);

    context few(base, GGML_TYPE_F16, nullptr, nullptr, 8);
    CHECK(alora_access::reserved(few)->get_inp_tokens()->ne[0] == 64);
    CHECK(alora_access::reserved(few)->get_logits()->ne[1] == 8);
}

// A graph's products have a row for each token or each output, and so are told by their number.
static void test_outputs(const tiny_llama & base) {
    context ours(base), all(base);
    auto    tokens = reading(6);
    for (token & t : tokens) {
        t.output = true;
    }
    all.decode(tokens);
    tokens[0].output = tokens[2].output = tokens[3].output = false;
    ours.decode(tokens);
    CHECK(alora_access::last(ours)->get_logits()->ne[1] == 3);
    CHECK(alora_access::last(all)->get_logits()->ne[1] == 6);
    for (const int i : { 1, 4, 5 }) {
        const auto expected = all.logits(i), found = ours.logits(i);
        for (size_t k = 0; k < found.size(); ++k) {
            CHECK(std::fabs(found[k] - expected[k]) < 1e-4f);
        }
    }
#ifdef NDEBUG  // or else upstream ends the process
    CHECK(!llama_get_logits_ith(ours, 0) && !llama_get_logits_ith(ours, 3));
#endif
}

// Reused for batches alike in tokens, outputs and plan, and filled anew each time.
static void test_reuse(const tiny_llama & base) {
    context           ours(base);
    const std::string adapter = tiny_llama::adapter(2);
    CHECK(alora_bank_reserve(ours, 3, 8) == ALORA_OK);
    const alora_slot slot  = alora_adapter_add(ours, adapter.data(), adapter.size());
    const alora_slot other = alora_adapter_add(ours, adapter.data(), adapter.size());
    CHECK(slot == 1 && other == 2);
    const int64_t n_reserves = ours.stats().n_reserves;

    ours.decode(reading(8));
    auto graphs = [&, before = ours.stats().n_graphs]() mutable {
        const int64_t now = ours.stats().n_graphs, n = now - before;
        before = now;
        return n;
    };
    ours.decode({ { 5, 8, 0 } });
    CHECK(graphs() == 1);
    const int32_t reused = llama_perf_context(ours).n_reused;
    ours.decode({ { 6, 9, 0 } });
    const auto of_6 = ours.logits(0);
    CHECK(graphs() == 0 && llama_perf_context(ours).n_reused == reused + 1);
    ours.decode({ { 7, 10, 0 } });
    CHECK(graphs() == 0 && ours.logits(0) != of_6);
    ours.decode({ { 8, 11, 0 }, { 9, 12, 0 } });
    CHECK(graphs() == 1);  // another number of tokens
    ours.decode({ { 8, 13, 0, false }, { 9, 14, 0 } });
    CHECK(graphs() == 1);  // another number of outputs

    CHECK(alora_activate(ours, 0, 15, slot, 1.0f) == ALORA_OK);
    ours.decode({ { 8, 15, 0, false }, { 9, 16, 0 } });
    CHECK(graphs() == 1);  // another plan
    CHECK(alora_activate(ours, 0, 17, other, 0.5f) == ALORA_OK);
    ours.decode({ { 8, 17, 0, false }, { 9, 18, 0 } });
    CHECK(graphs() == 0);  // the same plan, another slot and scale
    CHECK(ours.stats().n_reserves == n_reserves);
}

// Weights are multiplied through upstream's LoRA builders, each of which calls ours.
static void test_adapted_graphs(const tiny_llama & base) {
    context           ours(base);
    const std::string adapter = tiny_llama::adapter(3);
    CHECK(alora_bank_reserve(ours, 2, 8) == ALORA_OK);
    const alora_slot slot = alora_adapter_add(ours, adapter.data(), adapter.size());
    CHECK(slot == 1);
    const int64_t n_targets = (int64_t) tiny_llama::weights().size();
    CHECK(ours.stats().n_targets == n_targets);

    ours.decode(reading(20));
    ggml_cgraph * stock   = ours.graph();
    const int     n_stock = ggml_graph_n_nodes(stock);
    CHECK(count(stock, GGML_OP_CUSTOM) == 0 && count(stock, GGML_OP_MUL_MAT) == n_targets);
    CHECK(count(stock, GGML_OP_FLASH_ATTN_EXT) == tiny_llama::N_LAYER);

    // all adapted: q, k and v share a shrink node, as do gate and up
    CHECK(alora_activate(ours, 0, 20, slot, 1.0f) == ALORA_OK);
    ours.decode({ { 5, 20, 0 } });
    ggml_cgraph * pure = ours.graph();
    CHECK(count(pure, "alora_shrink") == 4 * tiny_llama::N_LAYER + 1);
    CHECK(count(pure, GGML_OP_CUSTOM) ==
            count(pure, "alora_shrink") + n_targets + tiny_llama::N_LAYER);
    CHECK(count(pure, GGML_OP_FLASH_ATTN_EXT) == 0);
    CHECK(ours.stats().n_attention == tiny_llama::N_LAYER);

    // base and adapted: upstream's attention with our mask, before it in the graph, then ours in place
    llama_memory_seq_cp(ours.memory(), 0, 1, 0, 20);
    ours.decode({ { 5, 20, 1 }, { 6, 21, 0 } });
    ggml_cgraph * mixed = ours.graph();
    CHECK(ours.stats().n_attention == tiny_llama::N_LAYER);
    CHECK(count(mixed, GGML_OP_FLASH_ATTN_EXT) == tiny_llama::N_LAYER);
    CHECK(count(mixed, "alora_mask") == 1);
    for (int i = 0; i < ggml_graph_n_nodes(mixed); ++i) {
        ggml_tensor * t = ggml_graph_node(mixed, i);
        if (t->op == GGML_OP_FLASH_ATTN_EXT) {
            CHECK(strcmp(t->src[3]->name, "alora_mask") == 0);
            const int of_mask = index_of(mixed, t->src[3]);
            CHECK(0 <= of_mask && of_mask < i);
            ggml_tensor * next = ggml_graph_node(mixed, i + 1);
            CHECK(next->op == GGML_OP_CUSTOM && next->view_src == t && next->data == t->data);
        }
    }
    CHECK(ggml_graph_n_nodes(mixed) > n_stock);
}

// Embeddings are looked up by upstream's builder too, which calls ours with the tokens it looked up.
static void test_adapted_embeddings(const tiny_llama & base) {
    context           ours(base);
    const std::string adapter = tiny_llama::adapter(5, true);
    CHECK(alora_adapter_add(ours, adapter.data(), adapter.size()) == 1);
    CHECK(ours.stats().n_targets == 1);
    CHECK(alora_activate(ours, 0, 10, 1, 1.0f) == ALORA_OK);
    ours.decode(reading(10));
    const int n_stock = count(ours.graph(), GGML_OP_GET_ROWS);
    ours.decode({ { 5, 10, 0 } });
    const auto adapted = ours.logits(0);
    CHECK(count(ours.graph(), GGML_OP_GET_ROWS) == n_stock + 1);
    CHECK(llama_memory_seq_rm(ours.memory(), 0, 10, -1));
    CHECK(alora_deactivate(ours, 0) == ALORA_OK);
    ours.decode({ { 5, 10, 0 } });
    CHECK(ours.logits(0) != adapted);
}

// What attention reads: cells as [d, keys, heads], on the host, and a mask of F16 in which 0 is seen
// and -inf is not.
struct seen_attention {
    bool f32_cells;
    bool looks = false;
    int  n     = 0;

    static bool callback(ggml_tensor * t, bool ask, void * data) {
        auto &     self         = *(seen_attention *) data;
        const bool is_attention = self.looks && t->op == GGML_OP_FLASH_ATTN_EXT;
        if (is_attention && !ask) {
            self.check(*t);
        }
        return is_attention || !ask;
    }

    void check(const ggml_tensor & t) {
        const ggml_tensor * q    = t.src[0];
        const ggml_tensor * mask = t.src[3];
        CHECK(q->type == GGML_TYPE_F32 && q->ne[0] == tiny_llama::D_HEAD && q->ne[3] == 1);
        CHECK(q->ne[1] == 4 && q->ne[2] == tiny_llama::N_HEAD);
        for (const ggml_tensor * cells : { t.src[1], t.src[2] }) {
            CHECK(cells->ne[0] == tiny_llama::D_HEAD && cells->ne[2] == tiny_llama::N_HEAD_KV);
            CHECK(cells->ne[1] <= mask->ne[0] && cells->ne[3] == 1 && cells->type == GGML_TYPE_F16);
            CHECK((cells->op == GGML_OP_CPY) == f32_cells);
            const ggml_tensor * own = f32_cells ? cells->src[0] : cells;
            CHECK(own->type == (f32_cells ? GGML_TYPE_F32 : GGML_TYPE_F16));
            CHECK(own->view_src && ggml_backend_buffer_is_host(own->view_src->buffer));
        }
        CHECK(mask->type == GGML_TYPE_F16 && ggml_is_contiguous(mask));
        CHECK(mask->ne[1] >= 4 && mask->ne[2] == 1 && mask->ne[3] == 1);
        // tokens 3 to 6 of a sequence whose cells lie in the order of their positions
        for (int64_t i = 0; i < 4; ++i) {
            const auto * row = (const uint16_t *) ((const char *) mask->data + i * mask->nb[1]);
            for (int64_t k = 0; k < mask->ne[0]; ++k) {
                CHECK(row[k] == (k <= 3 + i ? 0 : 0xfc00));
            }
        }
        ++n;
    }
};

static void test_attention(const tiny_llama & base) {
    for (const bool f32_cells : { false, true }) {
        seen_attention seen;
        seen.f32_cells = f32_cells;
        context ours(
                base, f32_cells ? GGML_TYPE_F32 : GGML_TYPE_F16, seen_attention::callback, &seen);
        ours.decode(reading(3));
        seen.looks = true;
        ours.decode(reading(4, 0, 3));
        CHECK(seen.n == tiny_llama::N_LAYER);
    }
}

// A fork shares cells, and what one sequence forgets another keeps.
// What a block, its attention and its FFN return is named after that by the architecture, and goes on to
// be what we made of it: steered, the stream is ours.
static void test_steered_graphs(const tiny_llama & base) {
    context                  ours(base);
    const std::vector<float> direction(tiny_llama::N_EMBD, 0.1f);
    std::vector<alora_part>  parts;
    for (const int32_t hook : { ALORA_HOOK_BLOCK, ALORA_HOOK_ATTENTION, ALORA_HOOK_FFN }) {
        parts.push_back({ 0, hook, ALORA_EDIT_ADD, 1, 1.0f, direction.data() });
    }
    const alora_slot slot = alora_vector_add(ours, parts.data(), 3, tiny_llama::N_EMBD);
    CHECK(alora_activate(ours, 0, 0, slot, 1.0f) == ALORA_OK);
    ours.decode(reading(4));
    std::vector<const ggml_tensor *> steered;
    for (int i = 0; i < ggml_graph_n_nodes(ours.graph()); ++i) {
        if (alora_steer::is_node(*ggml_graph_node(ours.graph(), i))) {
            steered.push_back(ggml_graph_node(ours.graph(), i));
        }
    }
    CHECK(steered.size() == 3);
    CHECK(!strcmp(steered[0]->name, "attn_out-0") && steered[0]->src[0]->op == GGML_OP_MUL_MAT);
    CHECK(!strcmp(steered[1]->name, "ffn_out-0") && steered[1]->src[0]->op == GGML_OP_MUL_MAT);
    CHECK(!strcmp(steered[2]->name, "l_out-0") && steered[2]->src[0]->op == GGML_OP_ADD);
    int n_read = 0;  // by the next block's norm, and as its residual
    for (int i = 0; i < ggml_graph_n_nodes(ours.graph()); ++i) {
        const ggml_tensor * node = ggml_graph_node(ours.graph(), i);
        CHECK(node->src[0] != steered[2]->src[0] || node == steered[2]);
        n_read += node->src[0] == steered[2] || node->src[1] == steered[2];
    }
    CHECK(n_read == 2);
}

static void test_the_cache(const tiny_llama & base) {
    context ours(base), alone(base);
    ours.decode(reading(10));
    alone.decode(reading(10));
    llama_memory_seq_cp(ours.memory(), 0, 1, 0, 8);  // positions in [0, 8)
    CHECK(llama_memory_seq_pos_min(ours.memory(), 1) == 0);
    CHECK(llama_memory_seq_pos_max(ours.memory(), 1) == 7);
    CHECK(llama_memory_seq_rm(ours.memory(), 0, 4, -1));  // from 4 on
    CHECK(llama_memory_seq_pos_max(ours.memory(), 0) == 3);
    CHECK(llama_memory_seq_pos_max(ours.memory(), 1) == 7);
    ours.decode(reading(2, 1, 8));
    alone.decode({ { 1, 10, 0 } });
    ours.decode({ { 1, 10, 1 } });
    const auto expected = alone.logits(0), found = ours.logits(0);
    for (size_t k = 0; k < found.size(); ++k) {
        CHECK(std::fabs(found[k] - expected[k]) < 1e-3f);
    }
    CHECK(llama_memory_seq_rm(ours.memory(), 1, -1, -1));  // all
    CHECK(llama_memory_seq_pos_max(ours.memory(), 1) == -1);

    // one cell for all that share it: 480 tokens are forked in a cache of 512
    context full(base);
    for (int first = 0; first < 480; first += 60) {
        full.decode(reading(60, 0, first));
    }
    for (llama_seq_id seq = 1; seq < 4; ++seq) {
        llama_memory_seq_cp(full.memory(), 0, seq, 0, -1);
    }
    full.decode({ { 1, 480, 3 } });
    CHECK(llama_memory_seq_pos_max(full.memory(), 3) == 480);
    CHECK(full.try_decode(reading(60, 0, 480)) == 1);  // no room: nothing is changed
    CHECK(llama_memory_seq_pos_max(full.memory(), 0) == 479);
    CHECK(full.try_decode({ { 1, 0, 4 } }) == -1);  // a batch has sequences below n_seq_max
    llama_memory_seq_cp(full.memory(), 0, LLAMA_MAX_SEQ - 1, 0, -1);  // a unified cache has all
    CHECK(llama_memory_seq_pos_max(full.memory(), LLAMA_MAX_SEQ - 1) == 479);
}

// A saved sequence is read back whole, wherever its cells lie then, and never in part.
static void test_saved_cells(const tiny_llama & base) {
    context ours(base), other(base);
    ours.decode(reading(12));
    std::vector<uint8_t> state(llama_state_seq_get_size(ours, 0));
    CHECK(llama_state_seq_get_data(ours, state.data(), state.size(), 0) == state.size());

    other.decode(reading(7, 2));
    CHECK(llama_state_seq_set_data(other, state.data(), state.size() / 2, 1) == 0);
    CHECK(llama_memory_seq_pos_max(other.memory(), 1) == -1);
    CHECK(llama_state_seq_set_data(other, state.data(), state.size(), 1) == state.size());
    CHECK(llama_memory_seq_pos_min(other.memory(), 1) == 0);
    CHECK(llama_memory_seq_pos_max(other.memory(), 1) == 11);
    CHECK(llama_memory_seq_pos_max(other.memory(), 2) == 6);
    ours.decode({ { 1, 12, 0 } });
    other.decode({ { 1, 12, 1 } });
    const auto expected = ours.logits(0), found = other.logits(0);
    for (size_t k = 0; k < found.size(); ++k) {
        CHECK(std::fabs(found[k] - expected[k]) < 1e-3f);
    }
}

// An aborted batch leaves the cache as it was before, and the context as good as new.
static void test_aborting(const tiny_llama & base) {
    context           ours(base), alone(base);
    const std::string adapter = tiny_llama::adapter(4);
    for (context * c : { &ours, &alone }) {
        CHECK(alora_adapter_add(*c, adapter.data(), adapter.size()) == 1);
        CHECK(alora_activate(*c, 0, 8, 1, 1.0f) == ALORA_OK);
        c->decode(reading(10));
    }
    CHECK(alora_interrupt(ours, true) == ALORA_OK);
    CHECK(ours.try_decode({ { 1, 10, 0 } }) == 2);
    CHECK(llama_memory_seq_pos_max(ours.memory(), 0) == 9);
    CHECK(alora_interrupt(ours, false) == ALORA_OK);
    ours.decode({ { 1, 10, 0 } });
    alone.decode({ { 1, 10, 0 } });
    CHECK(ours.logits(0) == alone.logits(0));
}

// Refused before upstream's assertion on n_batch, which would end the process.
static void test_batches_too_long(const tiny_llama & base) {
    context ours(base);
    CHECK(ours.try_decode(reading(65)) == -1);
    CHECK(std::string(alora_last_error()).find("n_batch = 64") != std::string::npos);
    CHECK(llama_memory_seq_pos_max(ours.memory(), 0) == -1);
    ours.decode(reading(64));
}

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    forget_variable("ALORA_CPU_PATH");
    llama_backend_init();
    const tiny_llama base;
    test_reserving(base);
    test_outputs(base);
    test_reuse(base);
    test_adapted_graphs(base);
    test_adapted_embeddings(base);
    test_attention(base);
    test_steered_graphs(base);
    test_the_cache(base);
    test_saved_cells(base);
    test_aborting(base);
    test_batches_too_long(base);
    return 0;
}
