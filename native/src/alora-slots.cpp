#include "alora-slots.h"

void alora_activations::set(llama_seq_id seq, llama_pos first, alora_choice choice) {
    if ((size_t) seq >= by_seq.size()) {
        by_seq.resize(seq + 1);
    }

    auto & list = by_seq[seq];
    while (!list.empty() && list.back().first >= first) {
        list.pop_back();
        n_active--;
    }

    const alora_choice before = list.empty() ? alora_choice{} : list.back().choice;
    if (!(choice == before)) {
        list.push_back({ first, choice });
        n_active++;
    }
}

void alora_activations::clear(llama_seq_id seq) {
    if (seq < 0) {
        by_seq.clear();
        n_active = 0;
    } else if ((size_t) seq < by_seq.size()) {
        n_active -= by_seq[seq].size();
        by_seq[seq].clear();
    }
}

alora_choice alora_activations::at(llama_seq_id seq, llama_pos pos) const {
    if (seq < 0 || (size_t) seq >= by_seq.size()) {
        return {};
    }

    // the newest activation is nearly always the one asked for
    const auto & list = by_seq[seq];
    for (auto it = list.rbegin(); it != list.rend(); ++it) {
        if (it->first <= pos) {
            return it->choice;
        }
    }
    return {};
}

bool alora_activations::uses(int32_t slot) const {
    for (const auto & list : by_seq) {
        for (const auto & entry : list) {
            if (entry.choice.slot == slot) {
                return true;
            }
        }
    }
    return false;
}
