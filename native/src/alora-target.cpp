#include "alora-target.h"

#include "alora-host.h"
#include "alora-pack.h"

#include <cstring>
#include <string>

// what ggml's matrix product of several tokens on the CPU takes at a time
static constexpr int64_t BATCH_STEP = 32;

// What ranks are padded to. On devices, rows of B: CUDA's mul_mat_id has no kernel but one that waits
// for the host in every product unless they fill 128 bytes.
static constexpr int64_t RANK_STEP_HOST    = 8;
static constexpr int64_t RANK_BYTES_DEVICE = 128;

// Bytes that a fused target's matrices begin at a multiple of.
static constexpr int64_t OWN_STEP = 64;

// Matrices of one mul_mat_id: Metal starts a thread for each, of which a group has no more, and ends
// the process otherwise; what is behind RPC, nobody knows.
static constexpr int64_t MOST_MATRICES = 1024;

alora_precision alora_precision::of(const ggml_tensor & product) {
    alora_precision found;
    if (product.op == GGML_OP_MUL_MAT || product.op == GGML_OP_MUL_MAT_ID) {
        found.acc  = (ggml_prec) product.op_params[0];
        found.src1 = (ggml_prec) product.op_params[3];
    }
    return found;
}

void alora_precision::ask_of(ggml_tensor * product) const {
    if (acc != GGML_PREC_DEFAULT) {
        ggml_prec_set_acc(product, acc);
    }
    if (src1 != GGML_PREC_DEFAULT) {
        ggml_prec_set_src(product, src1, 1);
    }
}

int64_t alora_target::rank_step() const {
    return on_host() ? RANK_STEP_HOST : RANK_BYTES_DEVICE / (int64_t) ggml_type_size(type_b);
}

int64_t alora_target::most_matrices() const {
    if (on_host()) {
        return INT64_MAX;
    }
    const ggml_backend_dev_t dev = ggml_backend_buft_get_device(buffer_type());
    const std::string name = dev ? ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)) : "";
    const bool        any =
            name == "CUDA" || name == "ROCm" || name == "Vulkan";  // their kernels were read
    return any ? INT64_MAX : MOST_MATRICES;
}

size_t alora_target::bytes_a() const {
    return ggml_row_size(type_a, cols_a()) * rows_a() * n_expert();
}

size_t alora_target::bytes_b() const {
    return ggml_row_size(type_b, cols_b()) * rows_b() * n_expert();
}

const char * alora_target::own_a(int32_t slot, int32_t expert) const {
    const alora_matrix_pair & own = slot_own[slot];
    return own.a + expert * alora_row_size(own.type_a, cols_a()) * slot_rank[slot];
}

const char * alora_target::own_b(int32_t slot, int32_t expert) const {
    const alora_matrix_pair & own = slot_own[slot];
    return own.b + expert * alora_tile_size(own.type_b, slot_rank[slot]) * n_tiles();
}

size_t alora_target::own_bytes_a(const alora_pair & pair) const {
    return GGML_PAD(
            alora_row_size(pair.a.info->type, cols_a()) * ggml_nrows(pair.a.info), OWN_STEP);
}

size_t alora_target::own_bytes_b(const alora_pair & pair) const {
    const int64_t one = alora_tile_size(pair.b.info->type, pair.b.info->ne[0]);
    return GGML_PAD(one * n_tiles() * n_expert(), OWN_STEP);
}

//
// where it lies
//

ggml_backend_buffer_type_t alora_target::buffer_type() const {
    ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(weight->buffer);

    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    auto get_extra         = (ggml_backend_dev_get_extra_bufts_t) ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(cpu), "ggml_backend_dev_get_extra_bufts");
    if (get_extra) {
        for (auto * extra = get_extra(cpu); extra && *extra; ++extra) {
            if (*extra == buft) {
                return ggml_backend_dev_buffer_type(cpu);
            }
        }
    }
    return buft;
}

bool alora_target::on_cpu() const {
    return alora_on_cpu(buffer_type());
}

bool alora_target::on_host() const {
    return ggml_backend_buft_is_host(buffer_type());
}

bool alora_target::divided() const {
    const ggml_backend_buffer_type_t buft = buffer_type();
    const ggml_backend_dev_t         dev  = ggml_backend_buft_get_device(buft);
    return dev && (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_META ||
                          strstr(ggml_backend_buft_name(buft), "_Split"));
}

// What ggml's dot product on the CPU takes at a time. It does the rest of a row one by one, which
// for rows of 32 on AVX-512 takes longer than a whole step of 64.
static int64_t dot_step() {
    ggml_backend_reg_t reg =
            ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    auto get_features = (ggml_backend_get_features_t) ggml_backend_reg_get_proc_address(
            reg, "ggml_backend_get_features");
    for (auto * feature = get_features ? get_features(reg) : nullptr; feature && feature->name;
            ++feature) {
        if (strcmp(feature->name, "AVX512") == 0) {
            return 64;
        }
    }
    return 32;
}

int64_t alora_target::width(int64_t r, bool batch) const {
    static const int64_t step = dot_step();
    return on_host() ? GGML_PAD(r, batch ? BATCH_STEP : step) : r;
}

//
// what lies there
//

static void set(ggml_tensor * stack, size_t offset, const std::vector<uint8_t> & bytes) {
    ggml_backend_tensor_set(stack, bytes.data(), offset, bytes.size());
}

void alora_target::write_slot(int32_t slot, const alora_pair * pair, float alpha, char * own) {
    slot_rank[slot]  = pair ? pair->b.info->ne[0] : 0;
    slot_scale[slot] = pair && alpha != 0.0f ? alpha / slot_rank[slot] : 1.0f;
    if (fused) {
        slot_own[slot] = {};
        if (pair) {
            const ggml_tensor * info_b = pair->b.info;
            const auto          rows   = alora_pack_rows(
                    pair->a.data, pair->a.info->type, cols_a(), ggml_nrows(pair->a.info));
            const auto tiles = alora_pack_tiles(
                    pair->b.data, info_b->type, info_b->ne[0], info_b->ne[1], n_expert());
            char * own_tiles = own + own_bytes_a(*pair);
            memcpy(own, rows.data(), rows.size());
            memcpy(own_tiles, tiles.data(), tiles.size());
            slot_own[slot] = { pair->a.info->type, info_b->type, own, own_tiles };
        }
        return;
    }
    if (!pair) {
        set(a, slot * bytes_a(), std::vector<uint8_t>(bytes_a(), 0));
        set(b, slot * bytes_b(), std::vector<uint8_t>(bytes_b(), 0));
        return;
    }

    const auto read = [](const alora_pair::matrix & m) {
        return alora_matrices{ m.info->ne[0], m.info->ne[1], m.info->ne[2],
            alora_to_f32(m.info->type, m.data, ggml_nelements(m.info)) };
    };
    set(a, slot * bytes_a(), alora_pack(read(pair->a), type_a, rows_a(), cols_a()));
    set(b, slot * bytes_b(), alora_pack(read(pair->b), type_b, rows_b(), cols_b()));
}

// One matrix stack of a slot from its old place to a new one of other type or size: `shape` is what
// lies in the old place.
static void move_stack(
        const ggml_tensor * from, size_t at, ggml_tensor * to, size_t to_at, alora_matrices shape,
        int64_t rows, int64_t cols) {
    const int64_t        n = shape.count * shape.rows * shape.cols;
    std::vector<uint8_t> bytes(ggml_row_size(from->type, n));
    ggml_backend_tensor_get(from, bytes.data(), at, bytes.size());
    shape.values = alora_to_f32(from->type, bytes.data(), n);
    set(to, to_at, alora_pack(shape, to->type, rows, cols));
}

void alora_target::copy_slot(int32_t slot, const alora_target & old) const {
    const int64_t n_exp = n_expert();
    move_stack(
            old.a, slot * old.bytes_a(), a, slot * bytes_a(),
            { old.cols_a(), old.rows_a(), n_exp, {} }, rows_a(), cols_a());
    move_stack(
            old.b, slot * old.bytes_b(), b, slot * bytes_b(),
            { old.cols_b(), old.rows_b(), n_exp, {} }, rows_b(), cols_b());
}
