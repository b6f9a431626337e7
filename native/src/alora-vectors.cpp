#include "alora-vectors.h"

#include "alora-error.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>

static alora_error bad_argument(const std::string & what) {
    return alora_error(ALORA_ERR_ARGUMENT, what);
}

static const char * name_of(int32_t hook) {
    switch (hook) {
        case ALORA_HOOK_ATTENTION:
            return "attention";
        case ALORA_HOOK_FFN:
            return "FFN";
        default:
            return "block";
    }
}

//
// for the graph
//

// How many of `parts` a tensor is a sum of, each times a number for each row: an operation that is
// linear may then be applied to each of them instead of to their sum.
static size_t n_summed(
        const ggml_tensor * t, const std::vector<const ggml_tensor *> & parts, int depth) {
    if (!t || depth == 0) {
        return 0;
    }
    if (std::find(parts.begin(), parts.end(), t) != parts.end()) {
        return 1;
    }
    switch (t->op) {
        case GGML_OP_ADD:
            return n_summed(t->src[0], parts, depth - 1) + n_summed(t->src[1], parts, depth - 1);
        case GGML_OP_MUL:
            return t->src[1]->ne[0] == 1 ? n_summed(t->src[0], parts, depth - 1) : 0;
        case GGML_OP_CUSTOM:  // our own, which edits its first source
        case GGML_OP_SCALE:
        case GGML_OP_RESHAPE:
        case GGML_OP_CONT:
            return n_summed(t->src[0], parts, depth - 1);
        default:
            return 0;
    }
}

// Whether anything that `t` is made of is the sum of all `parts`.
static bool has_sum(
        const ggml_tensor * t, const std::vector<const ggml_tensor *> & parts, int depth) {
    static constexpr int DEEPEST = 12;  // operations between an FFN and the sum
    if (!t || depth == 0) {
        return false;
    }
    if (n_summed(t, parts, DEEPEST) == parts.size()) {
        return true;
    }
    for (const ggml_tensor * source : t->src) {
        if (source && has_sum(source, parts, depth - 1)) {
            return true;
        }
    }
    return false;
}

void alora_vectors::note(
        const alora_point & point, const ggml_tensor & t, bool row_is_token, int64_t graph) {
    const auto begin = [&](place & at) {
        if (at.graph != graph) {
            at.graph      = graph;
            at.n_in_graph = 0;
            at.tensors.clear();
        }
    };
    place & at = places[point];
    begin(at);
    at.n_in_graph++;
    at.n_max = std::max(at.n_max, at.n_in_graph);
    at.row_is_token =
            at.row_is_token && row_is_token && t.ne[0] == n_embd && t.type == GGML_TYPE_F32;
    at.tensors.push_back(&t);

    // by now it is known what became of the block's FFNs
    if (point.hook == ALORA_HOOK_BLOCK) {
        const auto ffn = places.find({ ALORA_HOOK_FFN, point.layer });
        if (ffn != places.end() && ffn->second.graph == graph && ffn->second.n_in_graph > 1) {
            static constexpr int DEEPEST = 8;  // operations between that sum and the block's end
            ffn->second.linear           = has_sum(&t, ffn->second.tensors, DEEPEST);
        }
    }
}

uint32_t alora_vectors::n_edited(bool on_device) const {
    uint32_t n = 0;
    for (const auto & [point, n_vectors] : acting) {
        n += directions.on_device(point) == on_device ? (uint32_t) places.at(point).n_max : 0;
    }
    return n;
}

uint32_t alora_vectors::n_shown(int32_t hook) const {
    uint32_t n = 0;
    for (const auto & [point, at] : places) {
        n += point.hook == hook ? (uint32_t) at.n_max : 0;
    }
    return n;
}

const alora_vectors::composite * alora_vectors::find(alora_slot slot) const {
    const int64_t i = (int64_t) slot - ALORA_FIRST_COMPOSITE;
    return i >= 0 && i < (int64_t) all.size() ? all[i].get() : nullptr;
}

alora_choice alora_vectors::weights_of(const alora_choice & choice) const {
    if (!is_composite(choice.slot)) {
        return choice;
    }
    const composite * of = find(choice.slot);
    if (!of || of->adapter.slot == 0) {
        return {};
    }
    const float scale = of->adapter.scale * choice.scale;
    return scale == 0.0f ? alora_choice{} : alora_choice{ of->adapter.slot, scale };
}

bool alora_vectors::steers(const alora_choice & choice) const {
    const composite * of = is_composite(choice.slot) ? find(choice.slot) : nullptr;
    return of && (of->vector || !of->parts.empty());
}

void alora_vectors::append_uses(
        const alora_choice & choice, std::vector<alora_vector_use> & uses) const {
    const composite * of = is_composite(choice.slot) ? find(choice.slot) : nullptr;
    if (!of) {
        return;
    }
    if (of->vector) {
        uses.emplace_back(of->vector.get(), choice.scale);
    }
    for (const part & p : of->parts) {
        uses.emplace_back(find(p.slot)->vector.get(), p.scale * choice.scale);
    }
}

//
// adding and removing
//

std::string alora_vectors::why_not_at(const alora_point & point) const {
    const auto        at    = places.find(point);
    const std::string what  = std::string("architecture '") + architecture + "' ";
    const std::string layer = "layer " + std::to_string(point.layer);
    if (at == places.end()) {
        return what + "has no " + name_of(point.hook) + " at " + layer +
               " behind which a vector could act";
    }
    if (!at->second.row_is_token) {
        return what + "has rows that are not one per token behind the " + name_of(point.hook) +
               " of " + layer + ": a vector cannot be selected for them";
    }
    return "";
}

void alora_vectors::check(const alora_part & part, int32_t i) const {
    const std::string which = "part " + std::to_string(i) + ": ";
    if (part.hook < ALORA_HOOK_BLOCK || part.hook > ALORA_HOOK_FFN) {
        throw bad_argument(which + "hook " + std::to_string(part.hook) + " is not in [0, 2]");
    }
    if (part.edit < ALORA_EDIT_ADD || part.edit > ALORA_EDIT_ADD_KEEP_NORM) {
        throw bad_argument(which + "edit " + std::to_string(part.edit) + " is not in [0, 3]");
    }
    if (!part.directions) {
        throw bad_argument(which + "the directions are null");
    }
    const bool projects =
            part.edit == ALORA_EDIT_PROJECT || part.edit == ALORA_EDIT_PROJECT_POSITIVE;
    if (part.n_directions < 1 || part.n_directions > (projects ? n_embd : 1)) {
        throw bad_argument(
                which + std::to_string(part.n_directions) + " directions, expected " +
                (projects ? "1 to " + std::to_string(n_embd) : "1 for what is added"));
    }
    if (!std::isfinite(part.scale)) {
        throw bad_argument(which + "the scale is not finite");
    }
    for (int64_t j = 0; j < part.n_directions * n_embd; ++j) {
        if (!std::isfinite(part.directions[j])) {
            throw alora_error(ALORA_ERR_FORMAT, which + "a direction holds NaN or infinity");
        }
    }
    if (part.layer < 0 || part.layer >= n_layer) {
        throw alora_error(
                ALORA_ERR_MISMATCH, which + "layer " + std::to_string(part.layer) +
                                            " is not in [0, " + std::to_string(n_layer) +
                                            "), the layers of this base");
    }
    const alora_point point   = { part.hook, part.layer };
    const std::string why_not = why_not_at(point);
    if (!why_not.empty()) {
        throw alora_error(ALORA_ERR_MISMATCH, which + why_not);
    }
    const place & at = places.at(point);
    if (at.n_max > 1) {
        const std::string several = which + "architecture '" + architecture + "' has " +
                                    std::to_string(at.n_max) + " of what '" + name_of(part.hook) +
                                    "' names at layer " + std::to_string(part.layer);
        if (part.hook != ALORA_HOOK_FFN || !at.linear) {
            throw alora_error(
                    ALORA_ERR_MISMATCH,
                    several +
                            ", and their sum is not what is added: use the hook behind the block");
        }
        if (part.edit != ALORA_EDIT_PROJECT) {
            throw alora_error(
                    ALORA_ERR_MISMATCH,
                    several +
                            ", which are added up: only a projection can act on each of them; use "
                            "the hook behind the block for other operations");
        }
    }
}

alora_slot alora_vectors::keep(std::unique_ptr<composite> made) {
    const auto free = std::find(all.begin(), all.end(), nullptr);
    const auto slot = (alora_slot) (free - all.begin() + ALORA_FIRST_COMPOSITE);
    if (free == all.end()) {
        all.push_back(std::move(made));
    } else {
        *free = std::move(made);
    }
    return slot;
}

alora_vectors::change alora_vectors::add(const alora_part * parts, int32_t n_parts, int32_t width) {
    if (!parts || n_parts < 1) {
        throw bad_argument("a vector needs at least one part");
    }
    if (width != n_embd) {
        throw alora_error(
                ALORA_ERR_MISMATCH,
                "the vector is " + std::to_string(width) + " wide, the stream of this base " +
                        std::to_string(n_embd) + ": the vector was made for another base");
    }
    auto made    = std::make_unique<composite>();
    made->vector = std::make_unique<alora_vector>();
    for (int32_t i = 0; i < n_parts; ++i) {
        const alora_part & part = parts[i];
        check(part, i);
        made->vector->edits[{ part.hook, part.layer }].push_back(
                { (alora_edit) part.edit, part.scale, part.n_directions,
                        std::vector<float>(
                                part.directions, part.directions + part.n_directions * n_embd) });
    }

    // nothing is counted before all has its place
    const alora_vector * vector = made->vector.get();
    alora_slot           slot;
    try {
        for (const auto & [point, edits] : vector->edits) {
            acting.emplace(point, 0);
        }
        slot = keep(std::move(made));
    } catch (...) {
        forget_unused();
        throw;
    }
    for (const auto & [point, edits] : vector->edits) {
        acting.at(point)++;
    }
    try {
        const bool grew = stack_directions();
        return { slot, grew || !reserved() };
    } catch (...) {
        remove(slot);
        throw;
    }
}

bool alora_vectors::stack_directions() {
    std::map<alora_point, alora_directions::columns> wanted;
    for (const auto & of : all) {
        if (!of || !of->vector) {
            continue;
        }
        for (const auto & [point, edits] : of->vector->edits) {
            if (!directions.on_device(point)) {
                continue;
            }
            for (const alora_edit_at & edit : edits) {
                for (int32_t d = 0; d < edit.n_directions; ++d) {
                    wanted[point].push_back(
                            { of->vector.get(), &edit, edit.directions.data() + d * n_embd });
                }
            }
        }
    }
    return directions.place(std::move(wanted), n_embd);
}

void alora_vectors::undo(alora_slot slot) {
    directions.undo();
    remove(slot);
}

alora_slot alora_vectors::combine(int32_t n, const alora_slot * slots, const float * scales) {
    std::map<alora_slot, float> flat;
    const auto                  put = [&](alora_slot slot, float scale) { flat[slot] += scale; };
    for (int32_t i = 0; i < n; ++i) {
        const composite * of = find(slots[i]);
        if (!of || of->vector) {
            put(slots[i], scales[i]);
            continue;
        }
        if (of->adapter.slot != 0) {
            put(of->adapter.slot, of->adapter.scale * scales[i]);
        }
        for (const part & p : of->parts) {
            put(p.slot, p.scale * scales[i]);
        }
    }

    auto made = std::make_unique<composite>();
    for (const auto & [slot, scale] : flat) {
        if (!std::isfinite(scale)) {
            throw bad_argument("the scale of slot " + std::to_string(slot) + " is not finite");
        }
        if (slot == 0 || scale == 0.0f) {
            continue;  // the base's part
        }
        if (is_composite(slot)) {
            made->parts.push_back({ slot, scale });
        } else if (made->adapter.slot == 0) {
            made->adapter = { slot, scale };
        } else {
            throw bad_argument(
                    "slots " + std::to_string(made->adapter.slot) + " and " + std::to_string(slot) +
                    " both change weights, and several such adapters on one token are not "
                    "supported "
                    "yet: combine one with any number of vectors");
        }
    }
    return keep(std::move(made));
}

void alora_vectors::forget_unused() {
    for (auto at = acting.begin(); at != acting.end();) {
        at = at->second == 0 ? acting.erase(at) : std::next(at);
    }
}

void alora_vectors::remove(alora_slot slot) {
    const std::unique_ptr<composite> of = std::move(all[slot - ALORA_FIRST_COMPOSITE]);
    if (of->vector) {
        for (const auto & [point, edits] : of->vector->edits) {
            acting.at(point)--;
        }
        directions.forget(of->vector.get());
    }
    forget_unused();
}

bool alora_vectors::is_named(alora_slot slot) const {
    for (const auto & of : all) {
        if (!of) {
            continue;
        }
        const bool in_parts = std::any_of(
                of->parts.begin(), of->parts.end(), [&](const part & p) { return p.slot == slot; });
        if (in_parts || of->adapter.slot == slot) {
            return true;
        }
    }
    return false;
}

bool alora_vectors::is_finite(const alora_choice & choice) const {
    if (!std::isfinite(choice.scale) || !std::isfinite(weights_of(choice).scale)) {
        return false;
    }
    std::vector<alora_vector_use> uses;
    append_uses(choice, uses);
    for (const auto & [vector, scale] : uses) {
        for (const auto & [point, edits] : vector->edits) {
            for (const alora_edit_at & edit : edits) {
                if (!std::isfinite(edit.scale * scale)) {
                    return false;
                }
            }
        }
    }
    return true;
}

bool alora_vectors::reserved() const {
    return std::all_of(acting.begin(), acting.end(), [&](const auto & at) {
        return covered.count(at.first) > 0;
    });
}

int32_t alora_vectors::n_vectors() const {
    return (int32_t) std::count_if(
            all.begin(), all.end(), [](const auto & of) { return of && of->vector; });
}

size_t alora_vectors::n_bytes() const {
    size_t n = 0;
    for (const auto & of : all) {
        if (of && of->vector) {
            for (const auto & [point, edits] : of->vector->edits) {
                for (const alora_edit_at & edit : edits) {
                    n += edit.directions.size() * sizeof(float);
                }
            }
        }
    }
    return n + directions.n_bytes();
}
