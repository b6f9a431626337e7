#include "alora-guard.h"

#include "alora-access.h"
#include "alora-error.h"
#include "alora.h"

#include <memory>
#include <new>

// What upstream's scheduler, graphs and allocator take for each node at most: 60 tensors for what a
// split of the graph may read, and their places in a few tables.
static constexpr size_t BYTES_PER_NODE = 26 * 1024;

void alora_expect_memory(size_t bytes) {
    const std::unique_ptr<char[]> tried(new char[bytes]);
    // seen by nobody, or the compiler leaves it out
    *(volatile char *) tried.get() = 0;
}

static bool is_interrupted(void * bank) {
    const auto & of = *(const alora_bank *) bank;
    return of.interrupted.load(std::memory_order_relaxed) ||
           (of.callers_abort && of.callers_abort(of.callers_abort_data));
}

void alora_access::install_interrupts(llama_context * ctx) {
    alora_bank & of = bank(ctx);
    if (ctx->abort_callback != is_interrupted) {
        of.callers_abort      = ctx->abort_callback;
        of.callers_abort_data = ctx->abort_callback_data;
        ctx->set_abort_callback(is_interrupted, &of);
    }
    of.interruptible = true;
}

void alora_access::expect_memory_to_reserve(const llama_context * ctx) {
    if (ctx->sched_need_reserve) {
        alora_expect_memory(BYTES_PER_NODE * ctx->graph_max_nodes(ctx->cparams.n_ubatch));
    }
}

void alora_access::reserve(llama_context * ctx) {
    const bool parallel     = ctx->cparams.pipeline_parallel;
    ctx->sched_need_reserve = true;
    try {
        expect_memory_to_reserve(ctx);
        ctx->sched_reserve();
    } catch (const std::exception & error) {
        ctx->sched_need_reserve        = true;
        ctx->cparams.pipeline_parallel = parallel;
        throw alora_error(
                ALORA_ERR_MEMORY, std::string("compute buffers for the adapters: ") + error.what());
    }
}

int32_t alora_guarded(llama_context * ctx, const std::function<int32_t()> & body) {
    alora_set_error("");
    alora_bank & bank = alora_access::bank(ctx);
    bank.before_batch.clear();
    const bool causal = alora_access::is_causal(ctx);
    try {
        if (bank.interruptible) {
            alora_access::install_interrupts(ctx);
        }
        alora_access::expect_memory_to_reserve(ctx);
        return body();
    } catch (const std::bad_alloc &) {
        alora_set_error("out of memory");
    } catch (const std::exception & error) {
        alora_set_error(error.what());
    }
    alora_access::is_causal(ctx) = causal;  // which an encode changes while it computes
    alora_access::reserve_before_decoding(ctx);
    for (const auto & [seq, last] : bank.before_batch) {
        llama_memory_seq_rm(llama_get_memory(ctx), seq, last + 1, -1);
    }
    return -2;
}
