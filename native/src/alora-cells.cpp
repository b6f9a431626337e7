#include "alora-cells.h"

#include "llama-kv-cache-dsa-iswa.h"
#include "llama-kv-cache-dsa.h"
#include "llama-kv-cache-dsv4.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache-msa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-idx.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

constexpr float F16_MAX = 65504.0f;

// Cells [begin, end).
struct cell_run {
    uint32_t begin;
    uint32_t end;

    size_t size() const { return end - begin; }
};

using cell_runs = std::vector<cell_run>;

void append(cell_runs & runs, uint32_t cell) {
    if (!runs.empty() && runs.back().end == cell) {
        runs.back().end++;
    } else {
        runs.push_back({ cell, cell + 1 });
    }
}

size_t n_cells(const cell_runs & runs) {
    size_t n = 0;
    for (const cell_run & run : runs) {
        n += run.size();
    }
    return n;
}

// Of values `stride` bytes apart.
template <typename T>
bool no_exponent(const void * data, size_t n, T all_ones, size_t stride = sizeof(T)) {
    const char * at  = (const char *) data;
    T            bad = 0;
    for (size_t i = 0; i < n; ++i, at += stride) {
        T value;
        std::memcpy(&value, at, sizeof(T));  // states in a file need not be aligned
        bad |= (value & all_ones) == all_ones;
    }
    return bad == 0;
}

bool all_below(const float * values, size_t n, float limit) {
    bool below = true;
    for (size_t i = 0; i < n; ++i) {
        below &= std::fabs(values[i]) <= limit;  // false for NaN
    }
    return below;
}

bool is_finite(ggml_type type, const void * data, size_t n_bytes, bool as_f16) {
    switch (type) {
        case GGML_TYPE_F16:
            return no_exponent<uint16_t>(data, n_bytes / 2, 0x7c00);
        case GGML_TYPE_BF16:
            return no_exponent<uint16_t>(data, n_bytes / 2, 0x7f80);
        case GGML_TYPE_F32:
            return as_f16 ? all_below((const float *) data, n_bytes / 4, F16_MAX)
                          : no_exponent<uint32_t>(data, n_bytes / 4, 0x7f800000);
        default:
            break;
    }
    const ggml_type_traits * traits = ggml_get_type_traits(type);
    if (!traits->to_float) {
        return true;  // integers
    }
    std::vector<float> values(n_bytes / traits->type_size * traits->blck_size);
    traits->to_float(data, values.data(), (int64_t) values.size());
    return no_exponent<uint32_t>(values.data(), values.size(), 0x7f800000);
}

ggml_backend_buffer_t buffer_of(const ggml_tensor * tensor) {
    return tensor->view_src ? tensor->view_src->buffer : tensor->buffer;
}

// `n` pieces of `size` bytes, `stride` apart.
struct piece {
    size_t offset;
    size_t size;
    size_t n      = 1;
    size_t stride = 0;
};

bool is_finite(const ggml_tensor * tensor, const piece & where, bool as_f16, bool device) {
    if (ggml_backend_buffer_is_host(buffer_of(tensor))) {
        // a value of each row, as a token's cell of transposed values has them
        if (where.n > 1 && where.size == sizeof(uint16_t) && tensor->type == GGML_TYPE_F16) {
            return no_exponent<uint16_t>(
                    (const char *) tensor->data + where.offset, where.n, 0x7c00, where.stride);
        }
        for (size_t i = 0; i < where.n; ++i) {
            const char * data = (const char *) tensor->data + where.offset + i * where.stride;
            if (!is_finite(tensor->type, data, where.size, as_f16)) {
                return false;
            }
        }
        return true;
    }
    if (!device) {
        return true;
    }
    std::vector<char> copy(where.n * where.size);
    ggml_backend_tensor_get_2d(
            tensor, copy.data(), where.offset, where.size, where.n, where.stride, where.size);
    return is_finite(tensor->type, copy.data(), copy.size(), as_f16);
}

void clear(ggml_tensor * tensor, const piece & where) {
    for (size_t i = 0; i < where.n; ++i) {
        ggml_backend_tensor_memset(tensor, 0, where.offset + i * where.stride, where.size);
    }
}

}  // namespace

// The one friend that upstream's cache has.
struct alora_cache_access {
    static void keep(llama_kv_cache & cache) { cache.alora_keeps = true; }

    // f(tensor, piece) for what these cells of a stream hold, until it returns false.
    template <typename F>
    static bool each_piece(
            const llama_kv_cache & cache, uint32_t stream, const cell_runs & runs, const F & f) {
        for (const auto & layer : cache.layers) {
            for (const cell_run & run : runs) {
                ggml_tensor * k = layer.k ? layer.k_stream[stream] : nullptr;
                ggml_tensor * v = layer.v ? layer.v_stream[stream] : nullptr;
                if ((k && !f(k, rows(k, run))) ||
                        (v && !f(v, cache.v_trans ? columns(v, run) : rows(v, run)))) {
                    return false;
                }
            }
        }
        return true;
    }

    static size_t n_streams(const llama_kv_cache & cache) {
        return cache.other ? 0 : cache.v_cells.size();  // those of another cache are that one's
    }

    static const llama_kv_cells & cells(const llama_kv_cache & cache, size_t stream) {
        return cache.v_cells[stream];
    }

  private:
    static piece rows(const ggml_tensor * tensor, const cell_run & run) {
        return { run.begin * tensor->nb[1], run.size() * tensor->nb[1] };
    }

    // Transposed: a row for each value of a cell, whose type has no blocks.
    static piece columns(const ggml_tensor * tensor, const cell_run & run) {
        const size_t size = ggml_type_size(tensor->type);
        return { run.begin * size, run.size() * size, (size_t) tensor->ne[0],
            (size_t) tensor->ne[1] * size };
    }
};

namespace {

template <typename F> void each_cache(llama_memory_i * memory, const F & f) {
    if (auto * cache = dynamic_cast<llama_kv_cache *>(memory)) {
        f(*cache);
    } else if (auto * iswa = dynamic_cast<llama_kv_cache_iswa *>(memory)) {
        f(*iswa->get_base());
        f(*iswa->get_swa());
    } else if (auto * hybrid = dynamic_cast<llama_memory_hybrid *>(memory)) {
        f(*hybrid->get_mem_attn());
        auto * idx = dynamic_cast<llama_memory_hybrid_idx *>(memory);
        if (idx && idx->get_mem_idx()) {
            f(*idx->get_mem_idx());
        }
    } else if (auto * hybrid_iswa = dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        each_cache(hybrid_iswa->get_mem_attn(), f);
    } else if (auto * dsa = dynamic_cast<llama_kv_cache_dsa *>(memory)) {
        f(*dsa->get_mla());
        f(*dsa->get_lid());
    } else if (auto * dsa_iswa = dynamic_cast<llama_kv_cache_dsa_iswa *>(memory)) {
        each_cache(dsa_iswa->get_dsa(), f);
        f(*dsa_iswa->get_swa());
    } else if (auto * msa = dynamic_cast<llama_kv_cache_msa *>(memory)) {
        f(*msa->get_base());
        f(*msa->get_idx());
    } else if (auto * dsv4 = dynamic_cast<llama_kv_cache_dsv4 *>(memory)) {
        each_cache(dsv4->get_raw(), f);
        f(*dsv4->get_csa());
        f(*dsv4->get_hca());
        f(*dsv4->get_lid());
    }
}

llama_memory_recurrent * recurrent_of(llama_memory_i * memory) {
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid *>(memory)) {
        return hybrid->get_mem_recr();
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        return hybrid->get_mem_recr();
    }
    return dynamic_cast<llama_memory_recurrent *>(memory);
}

// f(tensor, piece) for what a state's cell holds, until it returns false.
template <typename F>
bool each_piece(const llama_memory_recurrent & memory, uint32_t cell, const F & f) {
    for (const auto * layers : { &memory.r_l, &memory.s_l, &memory.p_l }) {
        for (ggml_tensor * tensor : *layers) {
            if (tensor && !f(tensor, piece{ cell * tensor->nb[1], tensor->nb[1] })) {
                return false;
            }
        }
    }
    return true;
}

cell_runs runs_of(const llama_kv_cells & cells, const alora_cell_range & range) {
    cell_runs    runs;
    const auto & held = cells.seq_pos_get(range.seq);
    for (auto at = held.lower_bound({ range.begin, 0 }); at != held.end(); ++at) {
        if (at->first >= range.end) {
            break;
        }
        append(runs, at->second);
    }
    return runs;
}

cell_runs free_runs(const llama_kv_cells & cells) {
    cell_runs runs;
    for (uint32_t i = 0; i < cells.size(); ++i) {
        if (cells.is_empty(i)) {
            append(runs, i);
        }
    }
    return runs;
}

}  // namespace

namespace alora_cells {

void keep(llama_memory_i * memory, uint32_t n_ctx) {
    each_cache(memory, [&](llama_kv_cache & cache) {
        if (cache.get_size() >= n_ctx) {
            alora_cache_access::keep(cache);
        }
    });
}

std::vector<bool> finite(
        llama_memory_i * memory, const std::vector<alora_cell_range> & ranges, bool as_f16,
        bool device) {
    std::vector<bool> good(ranges.size(), true);

    const auto check = [&](const ggml_tensor * tensor, const piece & where) {
        return is_finite(tensor, where, as_f16, device);
    };
    const auto * recurrent = recurrent_of(memory);
    for (size_t i = 0; i < ranges.size(); ++i) {
        const llama_seq_id seq = ranges[i].seq;
        each_cache(memory, [&](const llama_kv_cache & cache) {
            const cell_runs runs = runs_of(cache.get_cells(seq), ranges[i]);
            good[i] = good[i] && n_cells(runs) <= size_t(ranges[i].end - ranges[i].begin) &&
                      alora_cache_access::each_piece(cache, cache.get_stream(seq), runs, check);
        });
        if (good[i] && recurrent && (size_t) seq < recurrent->cells.size() &&
                recurrent->cells[seq].tail >= 0) {
            good[i] = each_piece(*recurrent, (uint32_t) recurrent->cells[seq].tail, check);
        }
    }
    return good;
}

void clear_free(llama_memory_i * memory) {
    const auto erase = [](ggml_tensor * tensor, const piece & where) {
        clear(tensor, where);
        return true;
    };
    each_cache(memory, [&](const llama_kv_cache & cache) {
        for (uint32_t stream = 0; stream < alora_cache_access::n_streams(cache); ++stream) {
            const cell_runs runs = free_runs(alora_cache_access::cells(cache, stream));
            alora_cache_access::each_piece(cache, stream, runs, erase);
        }
    });
    if (const auto * recurrent = recurrent_of(memory)) {
        for (uint32_t i = 0; i < recurrent->size; ++i) {
            if (recurrent->cells[i].is_empty()) {
                each_piece(*recurrent, i, erase);
            }
        }
    }
}

}  // namespace alora_cells
