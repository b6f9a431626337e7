// Steering vectors: what they do to the stream, the combinations that slots stand for, and where in an
// architecture's graph a vector can act. Knows of graphs only what was noted while reserving one.
#pragma once

#include "alora-directions.h"
#include "alora-slots.h"
#include "alora-vector.h"
#include "alora.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

struct ggml_tensor;

class alora_vectors {
  public:
    // `memory`: see alora_directions; null: all layers are the CPU's.
    alora_vectors(
            std::string architecture, int32_t n_layer, int64_t n_embd,
            alora_directions::memory_of memory = nullptr) :
        directions(std::move(memory)),
        architecture(std::move(architecture)),
        n_layer(n_layer),
        n_embd(n_embd) {}

    // --- for the graph

    // That the worst-case graph number `graph` has a tensor there, whose rows are tokens or not.
    void note(const alora_point & point, const ggml_tensor & t, bool row_is_token, int64_t graph);

    // Whether a vector that is loaded acts there.
    bool acts_at(const alora_point & point) const { return acting.count(point) > 0; }

    // The weights' part of a choice, which may be of any slot; the base's if it has none.
    alora_choice weights_of(const alora_choice & choice) const;

    // Whether a choice has vectors, and which.
    bool steers(const alora_choice & choice) const;
    void append_uses(const alora_choice & choice, std::vector<alora_vector_use> & uses) const;

    // That worst-case graphs are built for what is loaded now.
    void note_reserve() { covered = acting; }

    uint32_t n_points() const { return (uint32_t) acting.size(); }

    // Tensors of a graph that are edited, by the CPU or by devices, and those that it has at a hook: a
    // block may have several FFNs.
    uint32_t n_edited(bool on_device) const;
    uint32_t n_shown(int32_t hook) const;

    // --- for the C API; what throws leaves everything as it was

    struct change {
        alora_slot slot = 0;
        bool       grew = false;  // the graphs' worst case changed: reserve, then keep() or undo()
    };

    change add(const alora_part * parts, int32_t n_parts, int32_t width);
    void   keep() { directions.keep(); }
    void   undo(alora_slot slot);

    // `slots` are the base, adapters that are in use, and slots of this.
    alora_slot combine(int32_t n, const alora_slot * slots, const float * scales);

    void remove(alora_slot slot);  // never throws

    static bool is_composite(alora_slot slot) { return slot >= ALORA_FIRST_COMPOSITE; }

    bool in_use(alora_slot slot) const { return find(slot) != nullptr; }

    // Whether a combination stands for `slot`, among others.
    bool is_named(alora_slot slot) const;

    // Whether a choice is finite throughout.
    bool is_finite(const alora_choice & choice) const;

    // Whether the worst-case graphs that were reserved last act wherever vectors do by now.
    bool reserved() const;

    int32_t n_vectors() const;
    size_t  n_bytes() const;

    alora_directions directions;  // of the layers that devices compute

  private:
    struct part {
        alora_slot slot;
        float      scale;
    };

    // A vector, or a combination of others, flat: at most one adapter and any number of vectors.
    struct composite {
        std::unique_ptr<alora_vector> vector;
        alora_choice                  adapter;  // slot 0: none
        std::vector<part>             parts;    // ascending in `slot`
    };

    struct place {
        int64_t graph        = 0;  // the reserved graph that last counted it
        int32_t n_in_graph   = 0;
        int32_t n_max        = 0;  // tensors of that kind in one graph
        bool    row_is_token = true;

        std::vector<const ggml_tensor *> tensors;         // of the graph that is being reserved
        bool                             linear = false;  // several: their sum is what is added
    };

    const composite * find(alora_slot slot) const;
    alora_slot        keep(std::unique_ptr<composite> made);
    void              forget_unused();
    bool              stack_directions();  // true if they grew
    void              check(const alora_part & part, int32_t i) const;

    std::string why_not_at(const alora_point & point) const;

    const std::string architecture;
    const int32_t     n_layer;
    const int64_t     n_embd;

    std::map<alora_point, place>            places;
    std::vector<std::unique_ptr<composite>> all;      // [slot - ALORA_FIRST_COMPOSITE]
    std::map<alora_point, int32_t>          acting;   // where vectors act, and how many
    std::map<alora_point, int32_t>          covered;  // the same when graphs were last reserved
};
