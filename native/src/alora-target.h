// One base weight that adapters change, and where their matrices are: shapes, layouts, memory.
#pragma once

#include "alora-file.h"
#include "alora-kernels.h"
#include "ggml-backend.h"

#include <cstdint>
#include <vector>

// How an architecture's graph consumes a weight.
enum class alora_op {
    mm,     // ggml_mul_mat:    A [n_in, rank, n_slots],          B [width, n_out, n_slots]
    mm_id,  // ggml_mul_mat_id: A [n_in, rank, n_expert*n_slots], B [width, n_out, n_expert*n_slots]
    embd,   // ggml_get_rows:   A [rank, n_vocab*n_slots],        B [width, n_embd, n_slots]
};

// What a graph asks of a product beyond ggml's default, by ggml_prec_set_*(): those functions do not
// find the product when an adapter's part has been added to it.
struct alora_precision {
    ggml_prec acc  = GGML_PREC_DEFAULT;  // of the sums
    ggml_prec src1 = GGML_PREC_DEFAULT;  // of what the weight is multiplied with

    // What a product has, nothing if it is none, and the same for another one.
    static alora_precision of(const ggml_tensor & product);
    void                   ask_of(ggml_tensor * product) const;
};

// One slot's matrices of a fused target, in host memory that is the adapter's own.
struct alora_matrix_pair {
    ggml_type    type_a = GGML_TYPE_COUNT;  // F16, BF16, F32 or Q8_0, as in the file
    ggml_type    type_b = GGML_TYPE_COUNT;
    const char * a      = nullptr;  // [n_in, rank, n_expert], as the loops have rows
    const char * b      = nullptr;  // tiles of [rank][64], n_tiles of each expert
};

// One base weight that at least one adapter changes. Where the CPU multiplies, by alora-fused, each slot
// has its matrices by itself. Elsewhere they are in stacks that all slots share: matrices of one slot lie
// together, so a slot is a view and (slot, expert) is the index slot*n_expert + expert.
struct alora_target {
    alora_op            op;
    const ggml_tensor * weight;
    int32_t             input = -1;     // targets with the same number mostly share their input
    alora_precision     precision;      // of the base's product, and so of the adapter's
    bool                fused = false;  // multiplied by alora-fused
    int64_t             rank  = 0;      // room in A·x and stacks, where shorter ones are padded

    // the stacks
    ggml_type     type_a = GGML_TYPE_COUNT;
    ggml_type     type_b = GGML_TYPE_COUNT;
    ggml_tensor * a      = nullptr;
    ggml_tensor * b      = nullptr;

    std::vector<int64_t> slot_rank;   // [n_slots]; 0: the slot leaves this target as it is
    std::vector<float>   slot_scale;  // [n_slots]; alpha/rank, by which A·x is multiplied

    std::vector<alora_matrix_pair> slot_own;  // [n_slots] if it is fused

    int64_t n_expert() const { return op == alora_op::mm_id ? weight->ne[2] : 1; }

    // shape of one matrix of A and of B, in rows and columns of its rank-padded form
    int64_t rows_a() const { return op == alora_op::embd ? weight->ne[1] : rank; }
    int64_t cols_a() const { return op == alora_op::embd ? rank : weight->ne[0]; }
    int64_t rows_b() const { return op == alora_op::embd ? weight->ne[0] : weight->ne[1]; }
    int64_t cols_b() const { return width(rank); }

    // Values in a row of B for rank r: as many as the kernel of its products takes at a time. The
    // rows are stored for the dot product of single tokens; `mul_mat` of a batch needs less.
    int64_t width(int64_t r, bool batch = false) const;

    // What ranks are padded to a multiple of.
    int64_t rank_step() const;

    // Matrices that a product may choose from by id on the weight's device.
    int64_t most_matrices() const;

    // Tiles of a fused B.
    int64_t n_tiles() const { return (rows_b() + ALORA_TILE - 1) / ALORA_TILE; }

    size_t bytes_a() const;  // of one slot of the stacks
    size_t bytes_b() const;

    // Where an expert's matrix of a fused target begins.
    const char * own_a(int32_t slot, int32_t expert) const;
    const char * own_b(int32_t slot, int32_t expert) const;

    // Bytes that an adapter's matrices take by themselves.
    size_t own_bytes_a(const alora_pair & pair) const;
    size_t own_bytes_b(const alora_pair & pair) const;

    // The memory its matrices should lie in: the weight's own, except that the CPU's repacking buffers
    // take no adapters.
    ggml_backend_buffer_type_t buffer_type() const;

    bool on_host() const;
    bool divided() const;  // over devices, by rows or otherwise
    bool on_cpu() const;   // whether the CPU computes with it

    // Fills one slot of the stacks, or, if it is fused, with matrices at `own`, which has room for
    // own_bytes_a() and then own_bytes_b(); no pair means that it leaves the target as it is.
    void write_slot(int32_t slot, const alora_pair * pair, float alpha, char * own);

    // Fills one slot of the stacks with what `old` has in it, whose ranks and types may be smaller.
    void copy_slot(int32_t slot, const alora_target & old) const;
};
