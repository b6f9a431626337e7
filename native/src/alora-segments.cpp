#include "alora-segments.h"

#include "ggml.h"

#include <algorithm>

void alora_segments::fill(const std::vector<alora_choice> & choices) {
    entries.clear();
    for (size_t i = 0; i < choices.size(); ++i) {
        if (choices[i].slot != 0) {
            entries.push_back({ choices[i].slot, 0, (int32_t) i, choices[i].scale });
        }
    }
    group();
}

void alora_segments::route(const alora_segments & tokens, const ggml_tensor & ids) {
    const int64_t n_used = ids.ne[0];
    entries.clear();
    for (const segment & of : tokens.all) {
        for (int32_t i = of.first; i < of.first + of.n; ++i) {
            const int32_t token = tokens.row[i];
            const char *  used  = (const char *) ids.data + token * ids.nb[1];
            for (int64_t k = 0; k < n_used; ++k) {
                entries.push_back(
                        { of.slot, *(const int32_t *) (used + k * ids.nb[0]),
                                (int32_t) (token * n_used + k), tokens.scale[i] });
            }
        }
    }
    group();
}

void alora_segments::group() {
    std::stable_sort(entries.begin(), entries.end(), [](const entry & a, const entry & b) {
        return a.slot != b.slot ? a.slot < b.slot : a.expert < b.expert;
    });
    row.clear();
    scale.clear();
    all.clear();
    for (const entry & e : entries) {
        if (all.empty() || all.back().slot != e.slot || all.back().expert != e.expert) {
            all.push_back({ e.slot, e.expert, (int32_t) row.size(), 0 });
        }
        all.back().n++;
        row.push_back(e.row);
        scale.push_back(e.scale);
    }
}
