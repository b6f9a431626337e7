// What the cells of a context hold, whatever its memory is made of: KV caches, with and without
// windows, and recurrent states.
#pragma once

#include "llama.h"

#include <vector>

struct llama_memory_i;

// Cells of `seq` at positions [begin, end).
struct alora_cell_range {
    llama_seq_id seq;
    llama_pos    begin;
    llama_pos    end;
};

namespace alora_cells {

// Upstream gives cells outside a sequence's window to other sequences. Caches that have `n_ctx`
// cells a stream or more, so that they need not, keep them from now on.
void keep(llama_memory_i * memory, uint32_t n_ctx);

// Whether what each range's cells hold, and its sequence's recurrent state, is finite, and in an
// F32 cell below what F16 holds where `as_f16`, which is what attention reads it as. On a device,
// which has to copy it to the host, only if `device`. Nor is a range good that has more cells than
// positions, as only a forged state does.
std::vector<bool> finite(
        llama_memory_i * memory, const std::vector<alora_cell_range> & ranges, bool as_f16,
        bool device);

// Sets what no sequence has to zero.
void clear_free(llama_memory_i * memory);

}  // namespace alora_cells
