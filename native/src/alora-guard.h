// What upstream's decoding runs in, so that nothing is thrown through its C functions.
#pragma once

#include <cstdint>
#include <functional>

struct llama_batch_ext;
struct llama_context;
struct llama_cparams;

// What `body`, a decode or an encode, returns. If it throws: -2, upstream's status for want of memory,
// with alora_last_error() set, nothing of the batch in the cache and the compute buffers to be reserved
// again before the next batch.
int32_t alora_guarded(llama_context * ctx, const std::function<int32_t()> & body);

// alora_check_batch() for a batch that is encoded, which has to fit n_ubatch.
bool alora_check_encoded(const llama_cparams & cparams, const llama_batch_ext & batch);

// Throws std::bad_alloc unless there are `bytes` of memory. Upstream's own bookkeeping ends the process
// where it gets none, so it is asked for before that is called.
void alora_expect_memory(size_t bytes);
