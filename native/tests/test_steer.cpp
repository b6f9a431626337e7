// Steering: the node against sums in double, slots of vectors and combinations, and what decoding makes of
// them: the control vector of upstream, batches of several, nothing where nothing is active.
#include "alora-host.h"
#include "alora-steer.h"
#include "backend.h"
#include "tiny_context.h"

#include <cmath>
#include <limits>
#include <map>
#include <random>

static constexpr int32_t N_EMBD = tiny_llama::N_EMBD;

static std::mt19937 rng(5);

static std::vector<float> random_floats(size_t n) {
    std::vector<float> values(n);
    for (float & value : values) {
        value = (float) ((int) (rng() % 2001) - 1000) / 1000.0f;
    }
    return values;
}

// Orthonormal rows, by Gram and Schmidt.
static std::vector<float> orthonormal(int64_t k, int64_t n) {
    std::vector<float> rows = random_floats(k * n);
    for (int64_t i = 0; i < k; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
            double product = 0.0;
            for (int64_t d = 0; d < n; ++d) {
                product += (double) rows[i * n + d] * rows[j * n + d];
            }
            for (int64_t d = 0; d < n; ++d) {
                rows[i * n + d] = j < i ? rows[i * n + d] - (float) product * rows[j * n + d]
                                        : rows[i * n + d] / (float) std::sqrt(product);
            }
        }
    }
    return rows;
}

//
// the node
//

// What all edits of a row make of it, as the definitions say.
static std::vector<double> by_definition(
        const std::vector<float> & h, const std::vector<const alora_part *> & parts,
        const std::vector<float> & scales) {
    const size_t        n = h.size();
    std::vector<double> out(h.begin(), h.end());
    bool                keep_norm = false;
    for (size_t p = 0; p < parts.size(); ++p) {
        const double scale = (double) parts[p]->scale * scales[p];
        for (int32_t k = 0; k < parts[p]->n_directions; ++k) {
            const float * v       = parts[p]->directions + k * n;
            double        product = 0.0;
            for (size_t i = 0; i < n; ++i) {
                product += (double) v[i] * h[i];
            }
            double factor = scale;
            if (parts[p]->edit == ALORA_EDIT_PROJECT) {
                factor = -scale * product;
            } else if (parts[p]->edit == ALORA_EDIT_PROJECT_POSITIVE) {
                factor = product > 0.0 ? -scale * product : 0.0;
            } else if (parts[p]->edit == ALORA_EDIT_ADD_KEEP_NORM) {
                keep_norm = true;
            }
            for (size_t i = 0; i < n; ++i) {
                out[i] += factor * v[i];
            }
        }
    }
    if (keep_norm) {
        double before = 0.0, after = 0.0;
        for (size_t i = 0; i < n; ++i) {
            before += (double) h[i] * h[i];
            after += out[i] * out[i];
        }
        for (double & value : out) {
            value *= std::sqrt(before / after);
        }
    }
    return out;
}

static std::vector<float> row_of(const ggml_tensor * t, int64_t i) {
    std::vector<float> row(t->ne[0]);
    memcpy(row.data(), (const char *) t->data + i * t->nb[1], row.size() * sizeof(float));
    return row;
}

// Every operation, alone and all of them together, on rows of which 0 and 7 are of nobody.
struct every_edit {
    static constexpr int N_ROWS = 8;

    const int64_t            n;
    alora_vectors            vectors;
    const std::vector<float> added = random_floats(n), kept = random_floats(n);
    const std::vector<float> plane = orthonormal(3, n), side = orthonormal(2, n);
    const alora_part         parts[4] = {
        { 0, ALORA_HOOK_BLOCK, ALORA_EDIT_ADD, 1, 0.5f, added.data() },
        { 0, ALORA_HOOK_BLOCK, ALORA_EDIT_PROJECT, 3, 1.0f, plane.data() },
        { 0, ALORA_HOOK_BLOCK, ALORA_EDIT_PROJECT_POSITIVE, 2, 0.75f, side.data() },
        { 0, ALORA_HOOK_BLOCK, ALORA_EDIT_ADD_KEEP_NORM, 1, 2.0f, kept.data() },
    };
    const float               of_all[4] = { 1.0f, -0.5f, 1.0f, 0.25f };
    std::vector<alora_choice> choices   = std::vector<alora_choice>(N_ROWS);
    alora_steered             steered;

    explicit every_edit(int64_t n, alora_directions::memory_of memory = nullptr) :
        n(n), vectors("test", 1, n, std::move(memory)) {
        ggml_tensor shape = {};
        shape.ne[0]       = n;
        vectors.note({ ALORA_HOOK_BLOCK, 0 }, shape, true, 1);
        std::vector<alora_slot> slots;
        for (const alora_part & part : parts) {
            slots.push_back(vectors.add(&part, 1, (int32_t) n).slot);
        }
        slots.push_back(vectors.combine(4, slots.data(), of_all));
        slots.push_back(vectors.combine(3, slots.data(), of_all));
        for (int i = 0; i < 6; ++i) {
            choices[i + 1] = { slots[i], i % 2 ? -0.8f : 1.0f };
        }
        steered.fill(vectors, choices);
    }

    // Values whose squares overflow, and their products with directions: what is of nobody stays as it is.
    void fill(ggml_tensor * stream) const {
        std::vector<float> values = random_floats(n * N_ROWS);
        for (int64_t i = 0; i < n; ++i) {
            values[i]         = i % 2 ? -3e38f : 3e38f;
            values[7 * n + i] = 1e19f;
            values[3 * n + i] += 3 * side[i];  // not away from what is projected on one side
        }
        memcpy(stream->data, values.data(), ggml_nbytes(stream));
    }

    void check(const ggml_tensor * stream, const ggml_tensor * out) const {
        CHECK(row_of(out, 0) == row_of(stream, 0) && row_of(out, 7) == row_of(stream, 7));
        for (int i = 0; i < 6; ++i) {
            std::vector<const alora_part *> used;
            std::vector<float>              scales;
            for (int p = 0; p < 4; ++p) {
                if (i == p || i == 4 || (i == 5 && p < 3)) {
                    used.push_back(&parts[p]);
                    scales.push_back((i < 4 ? 1.0f : of_all[p]) * choices[i + 1].scale);
                }
            }
            const std::vector<float>  h        = row_of(stream, i + 1);
            const std::vector<float>  found    = row_of(out, i + 1);
            const std::vector<double> expected = by_definition(h, used, scales);
            double                    moved    = 0.0;
            for (int64_t d = 0; d < n; ++d) {
                CHECK(std::fabs(found[d] - expected[d]) < 3e-6);
                moved = std::max(moved, std::fabs((double) found[d] - h[d]));
            }
            CHECK(moved > 1e-3);
        }
    }
};

// For widths that fill no register too.
static void test_node(int64_t n, int n_threads) {
    const every_edit       edits(n);
    const ggml_context_ptr ctx    = new_context();
    ggml_tensor *          stream = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n, edits.N_ROWS);
    edits.fill(stream);
    alora_steer   nodes;
    ggml_tensor * out =
            nodes.build(alora_host(ctx.get()), edits.steered, { ALORA_HOOK_BLOCK, 0 }, stream);
    CHECK(alora_steer::is_node(*out) && !alora_steer::is_node(*stream));
    const std::vector<float> before = row_of(stream, 3);
    cpu_backend              cpu(n_threads);
    CHECK(cpu.compute(ctx.get(), out) == GGML_STATUS_SUCCESS);
    CHECK(row_of(stream, 3) == before);
    edits.check(stream, out);
}

//
// on a device, for which the CPU stands
//

static ggml_backend_buffer_type_t device_memory(int32_t) {
    return ggml_backend_dev_buffer_type(cpu_device());
}

static void test_on_device(int64_t n) {
    const every_edit       edits(n, device_memory);
    const ggml_context_ptr ctx(ggml_init({ 1 << 20, nullptr, /*.no_alloc =*/true }));
    ggml_tensor *          stream = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n, edits.N_ROWS);
    alora_steer            nodes;
    const auto *           stack = edits.vectors.directions.find({ ALORA_HOOK_BLOCK, 0 });
    CHECK(stack && stack->of.size() == 7 && stack->rows->ne[1] == 8);
    ggml_tensor * out = nodes.build_on_device(ctx.get(), edits.steered, *stack, stream);
    cpu_backend   cpu(1);
    const ggml_backend_buffer_ptr memory(
            ggml_backend_alloc_ctx_tensors(ctx.get(), cpu.backend.get()));
    edits.fill(stream);
    nodes.set_inputs();

    const ggml_context_ptr of_graph = new_context();
    ggml_cgraph *          graph    = ggml_new_graph(of_graph.get());
    ggml_build_forward_expand(graph, out);
    CHECK(ggml_backend_graph_compute(cpu.backend.get(), graph) == GGML_STATUS_SUCCESS);
    edits.check(stream, out);
    CHECK(ggml_graph_n_nodes(graph) <= 32);  // the bank's NODES_ON_DEVICE
}

// Where a reserve fails, stacks are what they were before.
static void test_an_undone_stack() {
    constexpr int64_t n = 16;
    alora_vectors     vectors("test", 2, n, device_memory);
    const alora_point first = { ALORA_HOOK_BLOCK, 0 }, second = { ALORA_HOOK_BLOCK, 1 };
    ggml_tensor       shape = {};
    shape.ne[0]             = n;
    vectors.note(first, shape, true, 1);
    vectors.note(second, shape, true, 1);
    const std::vector<float> values = orthonormal(9, n);
    const auto               add    = [&](int32_t layer, int32_t k) {
        const alora_part part = { layer, ALORA_HOOK_BLOCK, ALORA_EDIT_PROJECT, k, 1,
            values.data() };
        return vectors.add(&part, 1, n);
    };
    const auto held = [&] {
        const auto *       stack = vectors.directions.find(first);
        std::vector<float> rows(ggml_nelements(stack->rows)), turned(rows.size());
        ggml_backend_tensor_get(stack->rows, rows.data(), 0, ggml_nbytes(stack->rows));
        ggml_backend_tensor_get(stack->turned, turned.data(), 0, ggml_nbytes(stack->turned));
        rows.insert(rows.end(), turned.begin(), turned.end());
        return rows;
    };
    CHECK(add(0, 2).grew);
    vectors.keep();
    vectors.note_reserve();
    const std::vector<float> before  = held();
    const size_t             n_bytes = vectors.n_bytes();
    for (const int32_t layer : { 0, 1 }) {
        const alora_vectors::change more =
                add(layer, 9);  // no room at the one, and none yet at the other
        CHECK(more.grew && vectors.n_vectors() == 2);
        vectors.undo(more.slot);
        CHECK(held() == before && vectors.directions.find(first)->of.size() == 2);
        CHECK(!vectors.directions.find(second) && vectors.n_points() == 1);
        CHECK(vectors.n_bytes() == n_bytes && vectors.n_vectors() == 1);
    }
    const alora_vectors::change fits = add(0, 6);
    CHECK(!fits.grew && vectors.directions.find(first)->of.size() == 8);
    vectors.remove(fits.slot);
    CHECK(add(0, 9).grew);
    vectors.keep();
    CHECK(vectors.directions.find(first)->rows->ne[1] == 16);
}

// A block that adds up three FFNs has three places to edit.
static void test_several_ffns() {
    constexpr int64_t          n   = 16;
    const ggml_context_ptr     ctx = new_context();
    std::vector<ggml_tensor *> ffns;
    for (int i = 0; i < 3; ++i) {
        ffns.push_back(ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n, 4));
    }
    ggml_tensor * sum = ggml_add(ctx.get(), ggml_add(ctx.get(), ffns[0], ffns[1]), ffns[2]);
    for (const bool on_device : { false, true }) {
        alora_vectors vectors(
                "test", 1, n, on_device ? device_memory : alora_directions::memory_of());
        for (const ggml_tensor * ffn : ffns) {
            vectors.note({ ALORA_HOOK_FFN, 0 }, *ffn, true, 1);
        }
        vectors.note({ ALORA_HOOK_BLOCK, 0 }, *sum, true, 1);
        const std::vector<float> values = orthonormal(1, n);
        const alora_part part = { 0, ALORA_HOOK_FFN, ALORA_EDIT_PROJECT, 1, 1.0f, values.data() };
        CHECK(vectors.n_edited(on_device) == 0);
        vectors.add(&part, 1, n);
        CHECK(vectors.n_edited(on_device) == 3 && vectors.n_edited(!on_device) == 0);
        CHECK(vectors.n_shown(ALORA_HOOK_FFN) == 3 && vectors.n_shown(ALORA_HOOK_BLOCK) == 1);
        CHECK(vectors.n_shown(-1) == 0);
    }
}

//
// slots
//

static std::vector<float> direction(int seed, float size = 1.0f) {
    std::mt19937       own(seed);
    std::vector<float> values(N_EMBD);
    for (float & value : values) {
        value = size * (float) ((int) (own() % 2001) - 1000) / 1000.0f;
    }
    return values;
}

static alora_slot add(
        const context & ours, int seed, int32_t layer = 0, int32_t hook = ALORA_HOOK_BLOCK,
        int32_t edit = ALORA_EDIT_ADD, float size = 1.0f) {
    const std::vector<float> values = direction(seed, size);
    const alora_part         part   = { layer, hook, edit, 1, 1.0f, values.data() };
    const alora_slot         slot   = alora_vector_add(ours, &part, 1, N_EMBD);
    CHECK(slot >= ALORA_FIRST_COMPOSITE);
    return slot;
}

static void fails(int32_t status, int32_t expected, const char * with) {
    if (status != expected || !strstr(alora_last_error(), with)) {
        std::fprintf(
                stderr, "%d '%s', expected %d '%s'\n", status, alora_last_error(), expected, with);
    }
    CHECK(status == expected && strstr(alora_last_error(), with));
}

static void test_refusals(const tiny_llama & base) {
    context                  ours(base);
    const std::vector<float> values = direction(1);
    const auto with = [&](int32_t layer, int32_t hook, int32_t edit, int32_t k, float scale,
                              const float * v, int32_t width = N_EMBD) {
        const alora_part part = { layer, hook, edit, k, scale, v };
        return alora_vector_add(ours, &part, 1, width);
    };
    const float * v = values.data();
    CHECK(alora_vector_add(nullptr, nullptr, 1, 1) == ALORA_ERR_ARGUMENT);
    fails(alora_vector_add(ours, nullptr, 1, N_EMBD), ALORA_ERR_ARGUMENT, "at least one part");
    fails(with(0, 0, 0, 1, 1, v, 32), ALORA_ERR_MISMATCH, "32 wide, the stream of this base 64");
    fails(with(2, 0, 0, 1, 1, v), ALORA_ERR_MISMATCH, "layer 2 is not in [0, 2)");
    fails(with(-1, 0, 0, 1, 1, v), ALORA_ERR_MISMATCH, "layer -1 is not in [0, 2)");
    fails(with(0, 3, 0, 1, 1, v), ALORA_ERR_ARGUMENT, "hook 3");
    fails(with(0, -1, 0, 1, 1, v), ALORA_ERR_ARGUMENT, "hook -1");
    fails(with(0, 0, 4, 1, 1, v), ALORA_ERR_ARGUMENT, "edit 4");
    fails(with(0, 0, 0, 1, 1, nullptr), ALORA_ERR_ARGUMENT, "null");
    fails(with(0, 0, 0, 2, 1, v), ALORA_ERR_ARGUMENT, "2 directions, expected 1");
    fails(with(0, 0, 3, 2, 1, v), ALORA_ERR_ARGUMENT, "2 directions, expected 1");
    fails(with(0, 0, 1, 0, 1, v), ALORA_ERR_ARGUMENT, "0 directions, expected 1 to 64");
    fails(with(0, 0, 1, 65, 1, v), ALORA_ERR_ARGUMENT, "65 directions, expected 1 to 64");
    fails(with(0, 0, 0, 1, std::nanf(""), v), ALORA_ERR_ARGUMENT, "scale is not finite");
    for (const float bad : { std::nanf(""), std::numeric_limits<float>::infinity() }) {
        std::vector<float> broken = values;
        broken[63]                = bad;
        fails(with(0, 0, 0, 1, 1, broken.data()), ALORA_ERR_FORMAT, "NaN or infinity");
    }
    CHECK(ours.stats().n_vectors == 0);

    const alora_slot  slot    = add(ours, 1);
    const std::string adapter = tiny_llama::adapter(2);
    const alora_slot  one     = alora_adapter_add(ours, adapter.data(), adapter.size());
    const alora_slot  two     = alora_adapter_add(ours, adapter.data(), adapter.size());
    const alora_slot  both[] = { one, two }, none[] = { slot, slot + 1 };
    const float scales[] = { 1, 1 }, infinite[] = { 1, std::numeric_limits<float>::infinity() };
    CHECK(one == 1 && two == 2);
    fails(alora_combine(ours, 2, both, scales), ALORA_ERR_ARGUMENT, "not supported yet");
    fails(alora_combine(ours, 2, none, scales), ALORA_ERR_ARGUMENT, "holds no adapter");
    fails(alora_combine(ours, 0, both, scales), ALORA_ERR_ARGUMENT, "at least one slot");
    const alora_slot finite[] = { one, slot };
    fails(alora_combine(ours, 2, finite, infinite), ALORA_ERR_ARGUMENT, "not finite");
    fails(alora_activate(ours, 0, 0, slot + 1, 1), ALORA_ERR_ARGUMENT, "holds no adapter");

    const std::vector<float> large  = direction(1, 1.0f);
    const alora_part         strong = { 0, 0, 0, 1, 1e30f, large.data() };
    const alora_slot         much   = alora_vector_add(ours, &strong, 1, N_EMBD);
    fails(alora_activate(ours, 0, 0, much, 1e30f), ALORA_ERR_ARGUMENT, "not finite");
}

static void test_removing(const tiny_llama & base) {
    context           ours(base);
    const std::string adapter  = tiny_llama::adapter(2);
    const alora_slot  one      = alora_adapter_add(ours, adapter.data(), adapter.size());
    const alora_slot  vector   = add(ours, 1);
    const alora_slot  parts[]  = { one, vector };
    const float       scales[] = { 1, 1 };
    const alora_slot  both     = alora_combine(ours, 2, parts, scales);
    CHECK(both > vector && ours.stats().n_vectors == 1 && ours.stats().n_adapters == 1);

    fails(alora_adapter_remove(ours, one), ALORA_ERR_BUSY, "part of a combination");
    fails(alora_adapter_remove(ours, vector), ALORA_ERR_BUSY, "part of a combination");
    CHECK(alora_activate(ours, 0, 3, both, 0.5f) == ALORA_OK);
    float scale = 0.0f;
    CHECK(alora_slot_at(ours, 0, 2, &scale) == 0 && alora_slot_at(ours, 0, 3, &scale) == both);
    CHECK(scale == 0.5f);
    fails(alora_adapter_remove(ours, both), ALORA_ERR_BUSY, "is active");
    CHECK(alora_deactivate(ours, 0) == ALORA_OK);
    CHECK(alora_adapter_remove(ours, both) == ALORA_OK);
    fails(alora_adapter_remove(ours, both), ALORA_ERR_ARGUMENT, "holds no adapter");

    CHECK(alora_activate(ours, 0, 3, vector, 1.0f) == ALORA_OK);
    fails(alora_adapter_remove(ours, vector), ALORA_ERR_BUSY, "is active");
    CHECK(alora_deactivate(ours, -1) == ALORA_OK);
    CHECK(alora_adapter_remove(ours, one) == ALORA_OK);
    CHECK(alora_adapter_remove(ours, vector) == ALORA_OK);
    CHECK(ours.stats().n_vectors == 0 && ours.stats().bank_bytes == 0);
    CHECK(add(ours, 2) == vector);  // its slot is free again
}

//
// decoding
//

static std::vector<std::vector<float>> rows(
        context & ours, llama_seq_id seq, int n, alora_slot slot, llama_pos first,
        float scale = 1) {
    CHECK(llama_memory_seq_rm(ours.memory(), seq, -1, -1));
    CHECK(alora_deactivate(ours, seq) == ALORA_OK);
    if (slot != 0) {
        CHECK(alora_activate(ours, seq, first, slot, scale) == ALORA_OK);
    }
    std::vector<token> tokens = reading(n, seq);
    for (token & t : tokens) {
        t.output = true;
    }
    ours.decode(tokens);
    std::vector<std::vector<float>> all;
    for (int i = 0; i < n; ++i) {
        all.push_back(ours.logits(i));
    }
    return all;
}

static double difference(const std::vector<float> & a, const std::vector<float> & b) {
    double largest = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
        largest = std::max(largest, (double) std::fabs(a[i] - b[i]));
    }
    return largest;
}

// Added behind every block, a vector is upstream's control vector, bit for bit. (Which has none for
// layer 0.)
static void test_control_vector(const tiny_llama & base) {
    context                  ours(base), theirs(base);
    const std::vector<float> values = direction(3);
    CHECK(llama_set_adapter_cvec(theirs, values.data(), values.size(), N_EMBD, 1, 1) == 0);
    const alora_slot slot = add(ours, 3, 1);
    const auto       bits = rows(ours, 0, 9, slot, 0);
    CHECK(bits == rows(theirs, 0, 9, 0, 0));
    CHECK(difference(bits[8], rows(ours, 1, 9, 0, 0)[8]) > 0.1);
}

// Rows before the activation, scale 0, and other sequences are the base's bit for bit.
static void test_nothing_where_nothing_is_active(const tiny_llama & base) {
    context    ours(base), fresh(base);
    const auto expected = rows(fresh, 0, 9, 0, 0);
    for (const int32_t hook : { ALORA_HOOK_BLOCK, ALORA_HOOK_ATTENTION, ALORA_HOOK_FFN }) {
        for (const int32_t layer : { 0, 1 }) {
            const alora_slot slot = add(ours, 4, layer, hook);
            CHECK(rows(ours, 0, 9, slot, 0, 0.0f) == expected);
            const auto steered = rows(ours, 0, 9, slot, 5);
            for (int i = 0; i < 9; ++i) {
                CHECK(i < 5 ? steered[i] == expected[i]
                            : difference(steered[i], expected[i]) > 1e-3);
            }
            CHECK(rows(ours, 1, 9, 0, 0) == expected);  // a stock graph again
            CHECK(alora_deactivate(ours, -1) == ALORA_OK);
        }
    }
}

// In one batch each token has its own: what it has alone.
static void test_mixed(const tiny_llama & base) {
    context           ours(base);
    const std::string adapter  = tiny_llama::adapter(2);
    const alora_slot  lora     = alora_adapter_add(ours, adapter.data(), adapter.size());
    const alora_slot  vector   = add(ours, 5, 0, ALORA_HOOK_FFN, ALORA_EDIT_ADD_KEEP_NORM);
    const alora_slot  parts[]  = { lora, vector };
    const float       scales[] = { 1, 1 };
    const alora_slot  slots[]  = { 0, lora, vector, alora_combine(ours, 2, parts, scales) };

    std::vector<std::vector<float>> alone;
    for (int seq = 0; seq < 4; ++seq) {
        alone.push_back(rows(ours, seq, 6, slots[seq], 2).back());
    }
    CHECK(llama_memory_seq_rm(ours.memory(), -1, -1, -1));
    std::vector<token> tokens;
    for (int i = 0; i < 6; ++i) {
        for (int seq = 0; seq < 4; ++seq) {
            tokens.push_back({ (7 * i + 3) % 96, i, seq, i == 5 });
        }
    }
    ours.decode(tokens);
    for (int seq = 0; seq < 4; ++seq) {
        const std::vector<float> found = ours.logits(20 + seq);
        // an adapted token's attention sums V in F32 or F16, whichever its batch has; no other differs
        CHECK(seq % 2 ? difference(found, alone[seq]) < 3e-2 : found == alone[seq]);
        for (int other = 0; other < seq; ++other) {
            CHECK(difference(found, alone[other]) > 0.3);
        }
    }
}

// What a combination stands for, whichever way it is put together.
static void test_combinations(const tiny_llama & base) {
    context           ours(base);
    const std::string adapter = tiny_llama::adapter(2);
    const alora_slot  lora    = alora_adapter_add(ours, adapter.data(), adapter.size());
    const alora_slot  a = add(ours, 6), b = add(ours, 7, 1, ALORA_HOOK_ATTENTION);
    const auto        combine = [&](std::vector<alora_slot> slots, std::vector<float> scales) {
        const alora_slot slot =
                alora_combine(ours, (int32_t) slots.size(), slots.data(), scales.data());
        CHECK(slot >= ALORA_FIRST_COMPOSITE);
        return slot;
    };
    const auto of = [&](alora_slot slot, float scale = 1.0f) {
        return rows(ours, 0, 7, slot, 2, scale)[6];
    };
    CHECK(of(combine({ a }, { 0.5f })) == of(a, 0.5f));
    CHECK(of(combine({ lora }, { 0.5f })) == of(lora, 0.5f));
    CHECK(of(combine({ a, b }, { 1, 1 })) == of(combine({ b, a }, { 1, 1 })));
    CHECK(of(combine({ a, a }, { 0.25f, 0.25f })) == of(a, 0.5f));
    CHECK(of(combine({ a, a }, { 1, -1 })) == of(0));
    CHECK(of(combine({ 0 }, { 1 })) == of(0));
    const alora_slot pair = combine({ lora, a }, { 0.5f, 2 });
    CHECK(of(combine({ pair, b }, { 2, 1 })) == of(combine({ lora, a, b }, { 1, 4, 1 })));
    CHECK(of(combine({ lora, pair }, { 1, -2 })) == of(a, -4));
    CHECK(of(pair, 0.5f) == of(combine({ lora, a }, { 0.25f, 1 })));
}

// One graph serves whatever is active, and activating reserves nothing; another place reserves once.
static void test_graphs(const tiny_llama & base) {
    context          ours(base);
    const int64_t    reserves = ours.stats().n_reserves;
    const alora_slot a        = add(ours, 8);
    const int64_t    each     = ours.stats().n_reserves - reserves;
    CHECK(each > 0);
    const alora_slot b = add(ours, 9, 0, ALORA_HOOK_BLOCK, ALORA_EDIT_PROJECT, 0.1f);
    CHECK(ours.stats().n_reserves == reserves + each);  // the same place
    const alora_slot c = add(ours, 10, 1);
    CHECK(ours.stats().n_reserves == reserves + 2 * each);

    ours.decode(reading(4));
    CHECK(ours.stats().n_steered == 0);
    const alora_stats idle = ours.stats();
    CHECK(alora_activate(ours, 0, 4, a, 1.0f) == ALORA_OK);
    ours.decode({ { 5, 4, 0 } });
    CHECK(ours.stats().n_steered == 2 && ours.stats().n_graphs == idle.n_graphs + 1);
    CHECK(alora_activate(ours, 0, 5, b, 0.5f) == ALORA_OK);
    ours.decode({ { 6, 5, 0 } });
    CHECK(alora_activate(ours, 0, 6, c, -1.0f) == ALORA_OK);
    ours.decode({ { 7, 6, 0 } });
    CHECK(ours.stats().n_graphs == idle.n_graphs + 1);
    ours.decode({ { 7, 7, 0, false } });  // nothing is wanted of it
    CHECK(ours.stats().n_reserves == idle.n_reserves);
    CHECK(ours.stats().compute_bytes == idle.compute_bytes);
    CHECK(ours.stats().n_skipped == 0);

    CHECK(alora_deactivate(ours, -1) == ALORA_OK);
    CHECK(alora_adapter_remove(ours, c) == ALORA_OK);
    CHECK(alora_activate(ours, 0, 8, a, 1.0f) == ALORA_OK);
    ours.decode({ { 7, 8, 0 } });
    CHECK(ours.stats().n_steered == 1);
    CHECK(add(ours, 11, 1) == c);  // reserved before, and not since
    CHECK(ours.stats().n_reserves == idle.n_reserves);
}

// The same bits with any number of threads.
static void test_threads(const tiny_llama & base) {
    context one(base, GGML_TYPE_F16, nullptr, nullptr, 0, 1),
            three(base, GGML_TYPE_F16, nullptr, nullptr, 0, 3);
    for (const int32_t edit : { 0, 1, 2, 3 }) {
        const alora_slot slot = add(one, 12, 0, ALORA_HOOK_BLOCK, edit, 0.2f);
        CHECK(add(three, 12, 0, ALORA_HOOK_BLOCK, edit, 0.2f) == slot);
        CHECK(rows(one, 0, 9, slot, 1) == rows(three, 0, 9, slot, 1));
        CHECK(alora_deactivate(one, -1) == ALORA_OK && alora_deactivate(three, -1) == ALORA_OK);
    }
}

// A stream that overflows does not reach other sequences.
static void test_overflow(const tiny_llama & base) {
    context                  ours(base), fresh(base);
    const std::vector<float> values = direction(13);
    const alora_part         part   = { 0, 0, 0, 1, 3e38f, values.data() };
    const alora_slot         slot   = alora_vector_add(ours, &part, 1, N_EMBD);
    CHECK(alora_activate(ours, 0, 2, slot, 1.0f) == ALORA_OK);
    std::vector<token> tokens = reading(6), others = reading(6, 1);
    tokens.insert(tokens.end(), others.begin(), others.end());
    fresh.decode(tokens);
    ours.decode(tokens);
    CHECK(ours.logits(11) == fresh.logits(11));
}

//
// showing
//

using shown_rows = std::map<std::string, std::vector<float>>;

// What an evaluation callback finds of ours.
static bool look(ggml_tensor * t, bool ask, void * data) {
    if (strncmp(t->name, "alora_shown-", 12) != 0) {
        return !ask;
    }
    if (!ask) {
        std::vector<float> values(ggml_nelements(t));
        ggml_backend_tensor_get(t, values.data(), 0, ggml_nbytes(t));
        (*(shown_rows *) data)[t->name] = values;
    }
    return true;
}

static void test_showing(const tiny_llama & base) {
    shown_rows seen;
    context    ours(base, GGML_TYPE_F16, look, &seen), fresh(base);
    const auto expected = rows(fresh, 0, 9, 0, 0);
    CHECK(rows(ours, 0, 9, 0, 0) == expected && seen.empty());
    for (const int32_t hook : { ALORA_HOOK_BLOCK, ALORA_HOOK_ATTENTION, ALORA_HOOK_FFN }) {
        CHECK(alora_show(ours, hook) == ALORA_OK);
        CHECK(rows(ours, 0, 9, 0, 0) == expected);
        CHECK(seen.size() == 2 && seen["alora_shown-0"].size() == 9 * N_EMBD);
        const shown_rows before = std::move(seen);
        seen.clear();
        const alora_slot         slot   = add(ours, 14, 0, hook);
        const std::vector<float> values = direction(14);
        rows(ours, 0, 9, slot, 5);  // edits are in what is shown
        const std::vector<float> &bare = before.at("alora_shown-0"), &now = seen["alora_shown-0"];
        for (int64_t i = 0; i < 9 * N_EMBD; ++i) {
            const float added = i < 5 * N_EMBD ? 0.0f : values[i % N_EMBD];
            CHECK(std::fabs(now[i] - bare[i] - added) < 1e-5);
        }
        seen.clear();
        CHECK(alora_deactivate(ours, -1) == ALORA_OK);
    }
    const int64_t n_reserves = ours.stats().n_reserves;
    CHECK(alora_show(ours, ALORA_HOOK_FFN) == ALORA_OK && ours.stats().n_reserves == n_reserves);
    fails(alora_show(ours, 3), ALORA_ERR_ARGUMENT, "hook 3 is not in [-1, 2]");
    fails(alora_show(nullptr, 0), ALORA_ERR_ARGUMENT, "the context is null");
    CHECK(alora_show(ours, -1) == ALORA_OK);
    CHECK(rows(ours, 0, 9, 0, 0) == expected && seen.empty());
}

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    for (const int64_t n : { 15, 64, 71 }) {
        test_node(n, 1);
        test_node(n, 3);
        test_on_device(n);
    }
    test_an_undone_stack();
    test_several_ffns();
    const tiny_llama base;
    test_refusals(base);
    test_removing(base);
    test_control_vector(base);
    test_nothing_where_nothing_is_active(base);
    test_mixed(base);
    test_combinations(base);
    test_graphs(base);
    test_threads(base);
    test_overflow(base);
    test_showing(base);
    return 0;
}
