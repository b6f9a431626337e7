// Activations: which slot a token of a sequence uses, and at what scale. Knows nothing of graphs,
// weights or the KV cache.
#pragma once

#include "llama.h"

#include <cstdint>
#include <vector>

struct alora_choice {
    int32_t slot  = 0;
    float   scale = 1.0f;

    bool operator==(const alora_choice & other) const {
        return slot == other.slot && scale == other.scale;
    }
};

class alora_activations {
  public:
    // From position `first` of `seq` on: `choice`. Replaces what began at `first` or later.
    void set(llama_seq_id seq, llama_pos first, alora_choice choice);

    // Forgets the activations of `seq`, or of every sequence when seq is -1.
    void clear(llama_seq_id seq);

    // The choice for position `pos` of `seq`; the base's if nothing was activated before it.
    alora_choice at(llama_seq_id seq, llama_pos pos) const;

    // Whether any activation names `slot`.
    bool uses(int32_t slot) const;

    bool empty() const { return n_active == 0; }

  private:
    struct activation {
        llama_pos    first;
        alora_choice choice;
    };

    std::vector<std::vector<activation>> by_seq;  // each ascending in `first`
    size_t                               n_active = 0;
};
