#include "alora-bank.h"

#include "alora-environment.h"
#include "alora-error.h"
#include "alora-host.h"
#include "alora-pack.h"
#include "alora.h"
#include "ggml-backend.h"
#include "llama-arch.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>

// add, mul by scale and two products, a reshape or view around each
static constexpr uint32_t NODES_PER_USE = 12;

// what is done to one tensor of the stream, and what makes that contiguous
static constexpr uint32_t NODES_PER_EDIT  = 2;
static constexpr uint32_t NODES_ON_DEVICE = 32;

// zeros behind a product's rows, and the view of the rows that count
static constexpr uint32_t NODES_PER_PADDING = 2;

// slots to begin with, the base's and four adapters', twice as many adapters whenever they are full
static constexpr int32_t FIRST_SLOTS = 5;

static alora_error mismatch(const std::string & what) {
    return alora_error(ALORA_ERR_MISMATCH, what);
}

static std::string shape_text(const ggml_tensor * t) {
    std::string text = "[" + std::to_string(t->ne[0]);
    for (int i = 1; i < ggml_n_dims(t); ++i) {
        text += ", " + std::to_string(t->ne[i]);
    }
    return text + "]";
}

// What upstream keeps a control vector of the layer in; null if that is the CPU's.
static ggml_backend_buffer_type_t device_memory(const llama_model & model, int32_t layer) {
    const ggml_backend_buffer_type_t buft = model.select_buft(layer);
    return alora_on_cpu(buft) ? nullptr : buft;
}

// ALORA_CPU_PATH=standard keeps to ggml's own products: for tests and for comparisons.
static bool fusing_wanted() {
    return alora_variable("ALORA_CPU_PATH") != "standard";
}

alora_bank::alora_bank(const llama_model & model) :
    vectors(llm_arch_name(model.arch), (int32_t) model.hparams.n_layer(), model.hparams.n_embd,
            [&model](int32_t layer) { return device_memory(model, layer); }),
    model(model),
    may_fuse(fusing_wanted()) {}

//
// for the graph
//

const alora_target * alora_bank::find(alora_op op, const char * weight) const {
    const auto it = by_key.find({ op, weight });
    return it == by_key.end() ? nullptr : &it->second;
}

void alora_bank::note_reserve() {
    n_reserves++;
    inputs.clear();
    last_product = nullptr;
}

std::vector<const alora_target *> alora_bank::sharing_input(const alora_target & target) const {
    std::vector<const alora_target *> sharing;
    for (const auto & [key, other] : by_key) {
        if (other.input == target.input) {
            sharing.push_back(&other);
        }
    }
    return sharing;
}

void alora_bank::note_use(
        alora_op op, const char * weight, const ggml_tensor * x, bool row_is_token,
        const ggml_tensor * product) {
    // by now the architecture has said what it asks of the product before this one
    if (last_product) {
        last_use->precision = alora_precision::of(*last_product);
    }
    alora_use & use = uses[{ op, weight }];
    last_product    = product;
    last_use        = &use;
    if (use.graph != n_reserves) {
        use.graph      = n_reserves;
        use.n_in_graph = 0;
    }
    use.n_in_graph++;
    use.n_max = std::max(use.n_max, use.n_in_graph);
    use.row_is_token &= row_is_token;

    // the first graph decides; it is a hint, and a later one need not agree
    if (use.input < 0) {
        const auto [it, is_new] = inputs.emplace(x, n_inputs);
        n_inputs += is_new;
        use.input = it->second;
    }
}

bool alora_bank::fused_throughout(int32_t slot) const {
    for (const auto & [key, target] : by_key) {
        if (!target.fused || (slot != 0 && target.slot_rank[slot] == 0)) {
            return false;
        }
    }
    return true;
}

bool alora_bank::scaled(int32_t slot) const {
    for (const auto & [key, target] : by_key) {
        for (int32_t s = slot; !target.fused && s < (slot ? slot + 1 : n_slots); ++s) {
            if (used[s] && target.slot_scale[s] != 1.0f) {
                return true;
            }
        }
    }
    return false;
}

bool alora_bank::needs_cache() const {
    // the one that has a cache and does without
    return !llama_model_has_encoder(&model) && model.arch != LLM_ARCH_LLAMA_EMBED;
}

bool alora_bank::repacked(const ggml_tensor & weight) const {
    return may_fuse && weight.buffer &&
           strcmp(ggml_backend_buffer_name(weight.buffer), "CPU_REPACK") == 0;
}

uint32_t alora_bank::n_nodes() const {
    uint32_t n = model.hparams.n_layer_all + 2;  // attention, and two masks that hide tokens
    n += NODES_PER_EDIT * vectors.n_edited(false) + NODES_ON_DEVICE * vectors.n_edited(true);
    n += vectors.n_shown(shown);
    for (const auto & [key, target] : by_key) {
        n += NODES_PER_USE * uses.at(key).n_max;
    }
    for (const auto & [key, use] : uses) {
        n += by_key.empty() || key.first != alora_op::mm ? 0 : NODES_PER_PADDING * use.n_max;
    }
    return n;
}

//
// matching an adapter's tensors with the base's weights
//

void alora_bank::check_shapes(
        const std::string & name, const alora_target & target, const alora_pair & pair) const {
    const ggml_tensor * w = target.weight;
    const ggml_tensor * a = pair.a.info;
    const ggml_tensor * b = pair.b.info;

    // the embedding's A is looked up by row, so it lies the other way round
    const bool    embd   = target.op == alora_op::embd;
    const int64_t n_in   = embd ? a->ne[1] : a->ne[0];
    const int64_t rank_a = embd ? a->ne[0] : a->ne[1];
    const int64_t n_exp  = target.n_expert();
    const bool    fits   = n_in == (embd ? w->ne[1] : w->ne[0]) && b->ne[1] == target.rows_b() &&
                           a->ne[2] == n_exp && b->ne[2] == n_exp && a->ne[3] == 1 && b->ne[3] == 1;
    if (!fits) {
        throw mismatch(
                "'" + name + "' is " + shape_text(w) + " in this base, which A " + shape_text(a) +
                " and B " + shape_text(b) + " do not fit: the adapter was made for another base");
    }
    if (rank_a != b->ne[0] || rank_a < 1 || rank_a > 4096) {
        throw alora_error(
                ALORA_ERR_FORMAT, "'" + name + "': A " + shape_text(a) + " and B " + shape_text(b) +
                                          " have no common rank in [1, 4096]");
    }
}

static ggml_type stored_type(const alora_target & target, const alora_pair::matrix & matrix) {
    return target.fused ? matrix.info->type : alora_type_stacked(matrix.info->type);
}

alora_target alora_bank::match(const std::string & name, const alora_pair & pair) const {
    const ggml_tensor * weight = model.get_tensor(name.c_str());
    if (!weight) {
        throw mismatch(
                "this base has no tensor '" + name + "': the adapter was made for another base");
    }

    // token_embd.weight may also be multiplied with, as a tied output; an adapter on it means the
    // embedding, as in PEFT
    alora_target target   = {};
    target.weight         = weight;
    const alora_use * use = nullptr;
    for (const alora_op op : { alora_op::embd, alora_op::mm_id, alora_op::mm }) {
        const auto it = uses.find({ op, name });
        if (it != uses.end()) {
            target.op = op;
            use       = &it->second;
            break;
        }
    }
    if (!use) {
        throw mismatch(
                "architecture '" + std::string(llm_arch_name(model.arch)) + "' uses '" + name +
                "' in a way adapters have no part in: an adapter on it would do nothing");
    }
    if (!use->row_is_token) {
        throw mismatch(
                "architecture '" + std::string(llm_arch_name(model.arch)) + "' multiplies '" +
                name +
                "' with rows that are not one per token: an adapter cannot be selected for them");
    }

    // upstream multiplies the sum of base and adapter by this scale, which is wrong for the adapter;
    // a router's is its input's
    const std::string stem   = name.substr(0, name.rfind('.'));
    const bool        router = stem.find("ffn_gate_inp") != std::string::npos;
    const bool        dense  = stem.find("ffn_") != std::string::npos && target.op == alora_op::mm;
    if (dense && !router && model.get_tensor((stem + ".scale").c_str())) {
        throw mismatch(
                "'" + name +
                "' has a separate scale, which upstream would apply to the adapter too");
    }

    // upstream ends the process where a slot of a stack is written into such memory
    if (target.divided()) {
        throw mismatch(
                "'" + name +
                "' is divided over several devices, where adapters cannot follow it: load the base "
                "with split_mode = LLAMA_SPLIT_MODE_LAYER");
    }

    check_shapes(name, target, pair);

    target.fused     = may_fuse && target.op != alora_op::embd && target.on_cpu();
    target.type_a    = stored_type(target, pair.a);
    target.type_b    = stored_type(target, pair.b);
    target.rank      = GGML_PAD(std::max(pair.b.info->ne[0], min_rank), target.rank_step());
    target.input     = use->input;
    target.precision = use->precision;
    return target;
}

//
// growing
//

alora_bank::target_map alora_bank::merged(const target_map & wanted, int32_t n_slots_new) const {
    target_map targets = by_key;
    for (const auto & [key, want] : wanted) {
        const auto [it, is_new] = targets.emplace(key, want);
        if (!is_new) {
            alora_target & have = it->second;
            have.rank           = std::max(have.rank, want.rank);
            have.type_a         = alora_type_common(have.type_a, want.type_a);
            have.type_b         = alora_type_common(have.type_b, want.type_b);
        }
    }
    for (auto & [key, target] : targets) {
        target.rank = std::max(target.rank, (int64_t) GGML_PAD(min_rank, target.rank_step()));
        target.slot_rank.resize(n_slots_new, 0);
        target.slot_scale.resize(n_slots_new, 1.0f);
        target.slot_own.resize(target.fused ? n_slots_new : 0);
    }
    return targets;
}

// Slots that leave no product with more matrices than its device can choose from.
int32_t alora_bank::most_slots(const target_map & more) const {
    int64_t most = INT32_MAX;
    for (const target_map * targets : { &by_key, &more }) {
        for (const auto & [key, target] : *targets) {
            most = std::min(most, target.most_matrices() / target.n_expert());
        }
    }
    return (int32_t) most;
}

void alora_bank::allocate(target_map & targets, int32_t n_slots_new, storage & into) const {
    for (const auto & [key, target] : targets) {
        if (target.n_expert() * n_slots_new > target.most_matrices()) {
            throw mismatch(
                    "'" + key.second + "' has " + std::to_string(target.n_expert()) +
                    " experts, and a device multiplies with at most " +
                    std::to_string(target.most_matrices()) +
                    " matrices at once: there is room for " +
                    std::to_string(target.most_matrices() / target.n_expert() - 1) +
                    " adapters, not for " + std::to_string(n_slots_new - 1) +
                    "; remove one, or keep the layers on the CPU");
        }
    }
    std::map<ggml_backend_buffer_type_t, ggml_context *> by_buft;
    for (auto & [key, target] : targets) {
        if (target.fused) {
            continue;
        }
        ggml_context *& ctx = by_buft[target.buffer_type()];
        if (!ctx) {
            // ggml_init() ends the process where it gets no memory
            const size_t size = 2 * targets.size() * ggml_tensor_overhead();
            into.headers.emplace_back(new char[size]);
            into.ctxs.emplace_back();
            ctx = ggml_init({ size, into.headers.back().get(), /*.no_alloc =*/true });
            into.ctxs.back().reset(ctx);
        }
        const int64_t n = target.n_expert() * n_slots_new;
        target.a        = target.op == alora_op::embd
                                  ? ggml_new_tensor_2d(
                                            ctx, target.type_a, target.cols_a(), target.rows_a() * n)
                                  : ggml_new_tensor_3d(
                                            ctx, target.type_a, target.cols_a(), target.rows_a(), n);
        target.b = ggml_new_tensor_3d(ctx, target.type_b, target.cols_b(), target.rows_b(), n);
        ggml_format_name(target.a, "%s.bank_a", key.second.c_str());
        ggml_format_name(target.b, "%s.bank_b", key.second.c_str());
    }
    for (const auto & [buft, ctx] : by_buft) {
        ggml_backend_buffer_t buf = ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft);
        if (!buf) {
            throw alora_error(
                    ALORA_ERR_MEMORY, std::string("no memory in ") + ggml_backend_buft_name(buft) +
                                              " for " + std::to_string(n_slots_new - 1) +
                                              " adapters of this rank");
        }
        ggml_backend_buffer_set_usage(buf, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        into.bufs.emplace_back(buf);
    }
}

alora_bank::own_memory alora_bank::allocate_own(
        const target_map & wanted, const alora_file & file) const {
    std::map<ggml_backend_buffer_type_t, size_t> sizes;
    std::map<key, size_t>                        offsets;
    for (const auto & [key, target] : wanted) {
        if (target.fused) {
            const alora_pair & pair = file.pairs.at(key.second);
            size_t &           size = sizes[target.buffer_type()];
            offsets[key]            = size;
            size += target.own_bytes_a(pair) + target.own_bytes_b(pair);
        }
    }
    own_memory                                   memory;
    std::map<ggml_backend_buffer_type_t, char *> bases;
    for (const auto & [buft, size] : sizes) {
        memory.bufs.reserve(memory.bufs.size() + 1);
        ggml_backend_buffer_t buf = ggml_backend_buft_alloc_buffer(buft, size);
        if (!buf) {
            throw alora_error(
                    ALORA_ERR_MEMORY, std::string("no memory in ") + ggml_backend_buft_name(buft) +
                                              " for the " + std::to_string(size) +
                                              " bytes of an adapter");
        }
        memory.bufs.emplace_back(buf);
        bases[buft] = (char *) ggml_backend_buffer_get_base(buf);
    }
    for (const auto & [key, offset] : offsets) {
        memory.at[key] = bases.at(wanted.at(key).buffer_type()) + offset;
    }
    return memory;
}

bool alora_bank::has_stacks() const {
    return std::any_of(
            by_key.begin(), by_key.end(), [](const auto & entry) { return !entry.second.fused; });
}

void alora_bank::copy_slots(target_map & targets) const {
    for (auto & [key, target] : targets) {
        if (target.fused) {
            continue;  // what is a slot's own stays where it is
        }
        const auto old = by_key.find(key);
        target.write_slot(0, nullptr, 0.0f, nullptr);
        for (int32_t slot = 1; slot < n_slots; ++slot) {
            if (!used[slot]) {
                continue;
            }
            if (old == by_key.end() || old->second.slot_rank[slot] == 0) {
                target.write_slot(slot, nullptr, 0.0f, nullptr);
            } else {
                target.copy_slot(slot, old->second);
            }
        }
    }
}

void alora_bank::adopt(
        target_map && targets, int32_t n_slots_new, storage && new_memory, int64_t old_min_rank) {
    std::vector<bool> used_new = used;
    used_new.resize(n_slots_new, false);
    own.resize(std::max(own.size(), (size_t) n_slots_new));

    // nothing throws from here on
    before  = { std::move(by_key), std::move(memory), n_slots, old_min_rank, std::move(used) };
    by_key  = std::move(targets);
    memory  = std::move(new_memory);
    n_slots = n_slots_new;
    used    = std::move(used_new);
    generation++;
}

void alora_bank::keep() {
    before = {};
}

void alora_bank::undo() {
    by_key   = std::move(before.by_key);
    memory   = std::move(before.memory);
    n_slots  = before.n_slots;
    min_rank = before.min_rank;
    used     = std::move(before.used);
    before   = {};
    for (size_t slot = 0; slot < own.size(); ++slot) {
        if (!in_use((int32_t) slot)) {
            own[slot].clear();
        }
    }
    generation++;
}

bool alora_bank::make_room(int32_t n_adapters, int64_t rank) {
    const int32_t n_slots_new  = std::max(n_slots, n_adapters + 1);
    const int64_t old_min_rank = min_rank;
    min_rank                   = std::max(min_rank, rank);
    if (n_slots_new == n_slots && rank <= largest_rank()) {
        return false;
    }
    const bool wider = rank > largest_rank();

    try {
        target_map targets = merged({}, n_slots_new);
        storage    new_memory;
        allocate(targets, n_slots_new, new_memory);
        copy_slots(targets);
        adopt(std::move(targets), n_slots_new, std::move(new_memory), old_min_rank);
    } catch (...) {
        min_rank = old_min_rank;
        throw;
    }
    if (by_key.empty() || !(wider || has_stacks())) {
        keep();
        return false;
    }
    return true;
}

//
// adding and removing
//

static void check_values(
        const std::string & name, const alora_target & target, const alora_pair & pair) {
    const auto values = [](const alora_pair::matrix & m) {
        return alora_to_f32(m.info->type, m.data, ggml_nelements(m.info));
    };
    if (!alora_fits(values(pair.a), target.type_a) || !alora_fits(values(pair.b), target.type_b)) {
        throw alora_error(
                ALORA_ERR_FORMAT, "'" + name + "' holds NaN, infinity, or a value that " +
                                          ggml_type_name(target.type_b) + " cannot hold");
    }
}

alora_bank::change alora_bank::add(const alora_file & file) {
    if (file.architecture != llm_arch_name(model.arch)) {
        throw mismatch(
                "the adapter is for architecture '" + file.architecture + "', this base is '" +
                llm_arch_name(model.arch) + "'");
    }
    for (const llama_token token : file.invocation) {
        if (token < 0 || (uint32_t) token >= model.vocab.n_tokens()) {
            throw mismatch(
                    "invocation token " + std::to_string(token) +
                    " is outside this base's vocabulary of " +
                    std::to_string(model.vocab.n_tokens()));
        }
    }

    target_map wanted;
    for (const auto & [name, pair] : file.pairs) {
        alora_target target = match(name, pair);
        check_values(name, target, pair);
        wanted.emplace(key{ target.op, name }, std::move(target));
    }

    const auto    free_slot = std::find(used.begin(), used.end(), false);
    const int32_t slot      = (int32_t) (free_slot - used.begin());
    if (alora_vectors::is_composite(slot)) {
        throw alora_error(ALORA_ERR_ARGUMENT, "the bank is full");
    }
    bool fits  = slot < n_slots;
    bool wider = false;  // than graphs were reserved for
    for (const auto & [key, want] : wanted) {
        const auto have = by_key.find(key);
        wider           = wider || have == by_key.end() || want.rank > have->second.rank;
        fits = fits && !wider &&
               (want.fused || (alora_type_common(want.type_a, have->second.type_a) ==
                                              have->second.type_a &&
                                      alora_type_common(want.type_b, have->second.type_b) ==
                                              have->second.type_b));
    }
    own_memory mine  = allocate_own(wanted, file);
    const auto write = [&](target_map & targets) {
        for (auto & [key, target] : targets) {
            const auto pair = file.pairs.find(key.second);
            const auto at   = mine.at.find(key);
            target.write_slot(
                    slot, pair == file.pairs.end() ? nullptr : &pair->second, file.alpha,
                    at == mine.at.end() ? nullptr : at->second);
        }
    };
    if (fits) {
        try {
            write(by_key);  // of a slot that nothing reads yet
        } catch (...) {
            remove(slot);
            throw;
        }
    } else {
        // no more than the devices take, though room for more may have been made before it was
        // known for which targets; but never fewer than there are
        const int32_t in_use =
                (int32_t) (used.rend() - std::find(used.rbegin(), used.rend(), true));
        const int32_t wished = slot < n_slots ? n_slots : std::max(FIRST_SLOTS, 2 * n_slots - 1);
        const int32_t n_slots_new =
                std::max(std::min(wished, most_slots(wanted)), std::max(in_use, slot + 1));
        target_map targets = merged(wanted, n_slots_new);
        storage    new_memory;
        allocate(targets, n_slots_new, new_memory);
        copy_slots(targets);
        write(targets);
        adopt(std::move(targets), n_slots_new, std::move(new_memory), min_rank);
    }
    used[slot] = true;
    own[slot]  = std::move(mine.bufs);
    generation++;
    const bool grew = wider || (!fits && has_stacks());
    if (!grew) {
        keep();
    }
    return { slot, grew };
}

void alora_bank::remove(int32_t slot) {
    used[slot] = false;
    for (auto & [key, target] : by_key) {
        target.slot_rank[slot] = 0;
    }
    if (slot < (int32_t) own.size()) {
        own[slot].clear();
    }
    generation++;
}

int32_t alora_bank::adapters() const {
    return (int32_t) std::count(used.begin() + 1, used.end(), true);
}

int64_t alora_bank::largest_rank() const {
    int64_t rank = by_key.empty() ? min_rank : INT64_MAX;
    for (const auto & [key, target] : by_key) {
        rank = std::min(rank, target.rank);
    }
    return rank;
}

size_t alora_bank::n_bytes() const {
    size_t n = 0;
    for (const auto & buf : memory.bufs) {
        n += ggml_backend_buffer_get_size(buf.get());
    }
    for (const auto & bufs : own) {
        for (const auto & buf : bufs) {
            n += ggml_backend_buffer_get_size(buf.get());
        }
    }
    return n;
}
