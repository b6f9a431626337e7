// The C API: checks arguments, turns exceptions into statuses, and tells the context what changed.
#include "alora.h"

#include "alora-access.h"
#include "alora-bank.h"
#include "alora-cells.h"
#include "alora-error.h"
#include "alora-file.h"
#include "alora-rpc.h"

#include <algorithm>
#include <cmath>

static thread_local std::string last_error;

void alora_set_error(const std::string & what) {
    last_error = what;
}

static alora_error bad_argument(const std::string & what) {
    return alora_error(ALORA_ERR_ARGUMENT, what);
}

// Runs `body`; its exceptions become a status and a sentence.
template <typename F> static int32_t guarded(const F & body) {
    last_error.clear();
    try {
        return body();
    } catch (const alora_error & error) {
        last_error = error.what();
        return error.status;
    } catch (const std::bad_alloc &) {
        last_error = "out of memory";
        return ALORA_ERR_MEMORY;
    } catch (const std::exception & error) {
        last_error = error.what();
        return ALORA_ERR_ARGUMENT;
    }
}

static void check_context(const llama_context * ctx) {
    if (!ctx) {
        throw bad_argument("the context is null");
    }
}

static void check_decoder(const llama_context * ctx) {
    if (alora_access::has_encoder(ctx)) {
        throw alora_error(ALORA_ERR_MISMATCH, "models with an encoder are not supported");
    }
}

static void check_seq(const llama_context * ctx, llama_seq_id seq) {
    if (seq < 0 || (uint32_t) seq >= alora_access::n_seq_max(ctx)) {
        throw bad_argument(
                "sequence " + std::to_string(seq) + " is not in [0, " +
                std::to_string(alora_access::n_seq_max(ctx)) + ")");
    }
}

static void check_slot(const alora_bank & bank, alora_slot slot) {
    if (!bank.in_use(slot) && !bank.vectors.in_use(slot)) {
        throw bad_argument("slot " + std::to_string(slot) + " holds no adapter");
    }
}

// After the bank grew: buffers for its graphs, or everything as it was before. Where not even what was
// there before gets its buffers back, the next llama_decode() asks for them again.
template <typename F> static void reserve_or_undo(llama_context * ctx, const F & undo) {
    try {
        alora_access::reserve(ctx);
    } catch (const alora_error &) {
        undo();
        try {
            alora_access::reserve(ctx);
        } catch (const alora_error &) {
        }
        throw;
    }
}

static void reserve_grown(llama_context * ctx) {
    alora_bank & bank = alora_access::bank(ctx);
    reserve_or_undo(ctx, [&] { bank.undo(); });
    bank.keep();
}

int32_t alora_api_version(void) {
    return ALORA_API_VERSION;
}

const char * alora_last_error(void) {
    return last_error.c_str();
}

int32_t alora_bank_reserve(llama_context * ctx, int32_t n_adapters, int32_t rank) {
    return guarded([&] {
        check_context(ctx);
        if (n_adapters < 1 || n_adapters > 1023 || rank < 1 || rank > 4096) {
            throw bad_argument("n_adapters should be in [1, 1023] and rank in [1, 4096]");
        }
        ctx->synchronize();
        if (alora_access::bank(ctx).make_room(n_adapters, rank)) {
            reserve_grown(ctx);
        }
        return (int32_t) ALORA_OK;
    });
}

alora_slot alora_adapter_add(llama_context * ctx, const void * gguf, size_t size) {
    return guarded([&] {
        check_context(ctx);
        if (!gguf || size == 0) {
            throw bad_argument("the adapter's bytes are missing");
        }
        check_decoder(ctx);
        const alora_file file(gguf, size);
        ctx->synchronize();

        const alora_bank::change change = alora_access::bank(ctx).add(file);
        if (change.grew) {
            reserve_grown(ctx);
        }
        return change.slot;
    });
}

alora_slot alora_vector_add(
        llama_context * ctx, const alora_part * parts, int32_t n_parts, int32_t n_embd) {
    return guarded([&] {
        check_context(ctx);
        check_decoder(ctx);
        if (alora_access::is_divided(ctx)) {
            throw alora_error(
                    ALORA_ERR_MISMATCH,
                    "the layers are divided over several devices, where vectors cannot follow: "
                    "load "
                    "the base with split_mode = LLAMA_SPLIT_MODE_LAYER");
        }
        ctx->synchronize();
        alora_bank &                bank = alora_access::bank(ctx);
        const uint32_t              n    = bank.vectors.n_points();
        const alora_vectors::change made = bank.vectors.add(parts, n_parts, n_embd);
        bank.generation += made.grew || bank.vectors.n_points() != n;
        if (made.grew) {
            reserve_or_undo(ctx, [&] {
                bank.vectors.undo(made.slot);
                bank.generation++;
            });
            bank.vectors.keep();
        }
        return made.slot;
    });
}

alora_slot alora_combine(
        llama_context * ctx, int32_t n, const alora_slot * slots, const float * scales) {
    return guarded([&] {
        check_context(ctx);
        if (n < 1 || !slots || !scales) {
            throw bad_argument("a combination needs at least one slot, and a scale for each");
        }
        alora_bank & bank = alora_access::bank(ctx);
        for (int32_t i = 0; i < n; ++i) {
            if (slots[i] != 0) {
                check_slot(bank, slots[i]);
            }
        }
        return bank.vectors.combine(n, slots, scales);
    });
}

int32_t alora_show(llama_context * ctx, int32_t hook) {
    return guarded([&] {
        check_context(ctx);
        if (hook < -1 || hook > ALORA_HOOK_FFN) {
            throw bad_argument("hook " + std::to_string(hook) + " is not in [-1, 2]");
        }
        ctx->synchronize();
        int32_t &     shown  = alora_access::bank(ctx).shown;
        const int32_t before = shown;
        if (hook != before) {
            shown = hook;
            reserve_or_undo(ctx, [&] { shown = before; });
        }
        return (int32_t) ALORA_OK;
    });
}

int32_t alora_adapter_remove(llama_context * ctx, alora_slot slot) {
    return guarded([&] {
        check_context(ctx);
        alora_bank & bank = alora_access::bank(ctx);
        check_slot(bank, slot);
        if (bank.activations.uses(slot)) {
            throw alora_error(
                    ALORA_ERR_BUSY, "slot " + std::to_string(slot) + " is active on a sequence");
        }
        if (bank.vectors.is_named(slot)) {
            throw alora_error(
                    ALORA_ERR_BUSY, "slot " + std::to_string(slot) +
                                            " is part of a combination: remove that first");
        }
        ctx->synchronize();
        if (alora_vectors::is_composite(slot)) {
            const uint32_t n = bank.vectors.n_points();
            bank.vectors.remove(slot);
            bank.generation += bank.vectors.n_points() != n;
        } else {
            bank.remove(slot);
        }
        return (int32_t) ALORA_OK;
    });
}

int32_t alora_activate(
        llama_context * ctx, llama_seq_id seq, llama_pos first, alora_slot slot, float scale) {
    return guarded([&] {
        check_context(ctx);
        check_seq(ctx, seq);
        alora_bank & bank = alora_access::bank(ctx);
        if (slot != 0) {
            check_slot(bank, slot);
        }
        if (first < 0 || !std::isfinite(scale)) {
            throw bad_argument("the first position should be at least 0 and the scale finite");
        }
        // at scale 0 an adapter is the base
        const bool         base   = slot == 0 || scale == 0.0f;
        const alora_choice choice = base ? alora_choice{} : alora_choice{ slot, scale };
        if (!bank.vectors.is_finite(choice)) {
            throw bad_argument("the scale times a part's own is not finite");
        }
        bank.activations.set(seq, first, choice);
        return (int32_t) ALORA_OK;
    });
}

int32_t alora_deactivate(llama_context * ctx, llama_seq_id seq) {
    return guarded([&] {
        check_context(ctx);
        if (seq != -1) {
            check_seq(ctx, seq);
        }
        alora_access::bank(ctx).activations.clear(seq);
        return (int32_t) ALORA_OK;
    });
}

alora_slot alora_slot_at(
        const llama_context * ctx, llama_seq_id seq, llama_pos pos, float * scale) {
    return guarded([&] {
        check_context(ctx);
        check_seq(ctx, seq);
        const alora_choice choice = alora_access::bank(ctx).activations.at(seq, pos);
        if (scale) {
            *scale = choice.scale;
        }
        return choice.slot;
    });
}

// `device`: whether cells are looked at that a device has to send.
static std::vector<bool> finite_ranges(
        llama_context * ctx, const std::vector<alora_cell_range> & ranges, bool device) {
    ctx->synchronize();
    return alora_cells::finite(
            llama_get_memory(ctx), ranges, alora_access::reads_as_f16(ctx), device);
}

int32_t alora_finite_cells(
        llama_context * ctx, int32_t n, const llama_seq_id * seqs, const llama_pos * begins,
        const llama_pos * ends, bool * finite) {
    return guarded([&] {
        check_context(ctx);
        if (n < 0 || (n > 0 && (!seqs || !begins || !ends || !finite))) {
            throw bad_argument("n is negative, or an array is null");
        }
        std::vector<alora_cell_range> ranges;
        for (int32_t i = 0; i < n; ++i) {
            check_seq(ctx, seqs[i]);
            ranges.push_back({ seqs[i], begins[i], ends[i] });
        }
        const alora_bank &      bank   = alora_access::bank(ctx);
        const bool              device = bank.adapters() > 0 || bank.vectors.n_vectors() > 0;
        const std::vector<bool> found  = finite_ranges(ctx, ranges, device);
        std::copy(found.begin(), found.end(), finite);
        return (int32_t) std::count(found.begin(), found.end(), false);
    });
}

int32_t alora_finite_batch(llama_context * ctx, llama_batch batch) {
    return guarded([&] {
        check_context(ctx);
        if (batch.n_tokens > 0 && (!batch.pos || !batch.n_seq_id || !batch.seq_id)) {
            throw bad_argument("the batch has no positions or no sequences");
        }
        const alora_bank &            bank = alora_access::bank(ctx);
        std::vector<alora_cell_range> base, adapted;
        for (int32_t i = 0; i < batch.n_tokens; ++i) {
            if (batch.n_seq_id[i] != 1) {
                throw bad_argument("a token of the batch is not of one sequence");
            }
            const llama_seq_id seq = batch.seq_id[i][0];
            const llama_pos    pos = batch.pos[i];
            check_seq(ctx, seq);
            auto & ranges = bank.activations.at(seq, pos).slot == 0 ? base : adapted;
            if (ranges.empty() || ranges.back().seq != seq || ranges.back().end != pos) {
                ranges.push_back({ seq, pos, pos });
            }
            ++ranges.back().end;
        }
        int32_t n = 0;
        for (const auto * ranges : { &base, &adapted }) {
            const std::vector<bool> found = finite_ranges(ctx, *ranges, ranges == &adapted);
            n += (int32_t) std::count(found.begin(), found.end(), false);
        }
        return n;
    });
}

int32_t alora_clear_free_cells(llama_context * ctx) {
    return guarded([&] {
        check_context(ctx);
        ctx->synchronize();
        alora_cells::clear_free(llama_get_memory(ctx));
        return (int32_t) ALORA_OK;
    });
}

int32_t alora_keep_cells(llama_context * ctx) {
    return guarded([&] {
        check_context(ctx);
        alora_cells::keep(llama_get_memory(ctx), alora_access::n_ctx_seq(ctx));
        return (int32_t) ALORA_OK;
    });
}

int32_t alora_attention_set(llama_context * ctx, int32_t mode) {
    return guarded([&] {
        check_context(ctx);
        if (mode < ALORA_ATTENTION_UPSTREAM || mode > ALORA_ATTENTION_OURS) {
            throw bad_argument("mode should be an alora_attention_mode");
        }
        alora_access::bank(ctx).attention = (alora_attention_mode) mode;
        return (int32_t) ALORA_OK;
    });
}

int32_t alora_interrupt(llama_context * ctx, bool on) {
    return guarded([&] {
        check_context(ctx);
        alora_bank & bank = alora_access::bank(ctx);
        bank.interrupted  = on;
        if (!bank.interruptible) {
            alora_access::install_interrupts(ctx);
        }
        return (int32_t) ALORA_OK;
    });
}

int32_t alora_tokenize(
        const llama_vocab * vocab, const char * text, int32_t n_text, llama_token * tokens,
        int32_t n_max, bool add_special, bool parse_special, int32_t * n_made) {
    return guarded([&] {
        if (!vocab || !text || n_text < 0 || !tokens || n_max < 0 || !n_made) {
            throw bad_argument("vocabulary, text, tokens or their number is null or negative");
        }
        if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
            throw bad_argument("the vocabulary has no texts");
        }
        *n_made = llama_tokenize(vocab, text, n_text, tokens, n_max, add_special, parse_special);
        return (int32_t) ALORA_OK;
    });
}

int32_t alora_token_attributes(const llama_vocab * vocab, int32_t * attributes) {
    return guarded([&] {
        if (!vocab || !attributes || llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
            throw bad_argument("vocabulary or attributes are null, or there are no texts");
        }
        for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); token++) {
            attributes[token] = llama_vocab_get_attr(vocab, token);
        }
        return (int32_t) ALORA_OK;
    });
}

int32_t alora_stats_get(const llama_context * ctx, alora_stats * stats) {
    return guarded([&] {
        check_context(ctx);
        if (!stats) {
            throw bad_argument("stats is null");
        }
        const alora_bank & bank = alora_access::bank(ctx);
        *stats                  = {};
        stats->n_reserves       = bank.n_reserves;
        stats->n_graphs         = bank.n_graphs;
        stats->n_nodes          = alora_access::n_nodes(ctx);
        stats->compute_bytes    = alora_access::compute_bytes(ctx);
        stats->bank_bytes       = (int64_t) (bank.n_bytes() + bank.vectors.n_bytes());
        stats->n_targets        = bank.targets();
        stats->n_slots          = bank.slots();
        stats->n_adapters       = bank.adapters();
        stats->rank             = (int32_t) bank.largest_rank();
        stats->n_attention      = alora_access::n_attention(ctx);
        stats->n_skipped        = bank.n_skipped;
        stats->n_vectors        = bank.vectors.n_vectors();
        stats->n_steered        = alora_access::n_steered(ctx);
        return (int32_t) ALORA_OK;
    });
}

static std::vector<std::string> endpoints_of(const char * const * endpoints, int32_t n) {
    std::vector<std::string> found;
    for (int32_t i = 0; i < n; i++) {
        if (!endpoints || !endpoints[i]) {
            throw bad_argument("an endpoint is null");
        }
        const std::string endpoint = endpoints[i];
        const size_t      colon    = endpoint.find(':');
        const std::string port     = colon == std::string::npos ? "" : endpoint.substr(colon + 1);
        const bool        is_number =
                !port.empty() && port.find_first_not_of("0123456789") == std::string::npos;
        if (colon == 0 || !is_number || port.size() > 5 || std::stoi(port) > 0xffff) {
            throw bad_argument("an endpoint should be host:port");
        }
        found.push_back(endpoint);
    }
    return found;
}

int32_t alora_rpc_devices(
        const char * const * endpoints, int32_t n_endpoints, ggml_backend_dev_t * devices,
        int32_t n_devices) {
    return guarded([&] {
        const std::vector<ggml_backend_dev_t> found =
                alora_rpc_devices_of(endpoints_of(endpoints, n_endpoints));
        if (!devices || (int64_t) found.size() >= n_devices) {
            throw bad_argument("there is no room for so many devices");
        }
        *std::copy(found.begin(), found.end(), devices) = nullptr;
        return (int32_t) found.size();
    });
}

int32_t alora_rpc_check(const char * const * endpoints, int32_t n_endpoints) {
    return guarded([&] {
        alora_rpc_expect(endpoints_of(endpoints, n_endpoints));
        return (int32_t) ALORA_OK;
    });
}

int32_t alora_rpc_serve(const char * endpoint, const char * cache, int32_t n_threads) {
    return guarded([&]() -> int32_t {
        if (n_threads < 1) {
            throw bad_argument("n_threads should be at least 1");
        }
        alora_rpc_serve_at(endpoints_of(&endpoint, 1).front(), cache, (size_t) n_threads);
    });
}
