// The C API of alora-gguf: a bank of LoRA and aLoRA adapters and of steering vectors inside a
// llama_context, from which every token of a batch selects its own. It is compiled into libllama, next to
// llama.h.
//
// Seven concepts:
//   bank        all adapters of one context, in their target weights' kind of memory
//   slot        an adapter's index in the bank; slot 0 is the base model and contributes exactly zero;
//               from ALORA_FIRST_COMPOSITE on, a vector or a combination
//   activation  (sequence, first position, slot, scale): from that position on, tokens of that
//               sequence are computed with that slot; a plain LoRA is one activated at position 0
//   target      a base weight that an adapter changes
//   vector      an edit of what flows through the model instead of its weights, at some of its layers
//   combination a slot that stands for one adapter and any number of vectors, each at a scale
//   reserve     upstream's word for sizing the compute buffers by building worst-case graphs
// and one switch, which ends a llama_decode() that takes too long; and servers, other machines' devices.
//
// Contract: nothing here aborts or throws. A function that can fail returns a negative alora_status,
// leaves a sentence in alora_last_error(), and bank and context as they were. Calls on one context must
// not run at the same time, as for llama_decode(), alora_interrupt() excepted. The bank is freed with
// its context.
//
// llama_decode(), llama_encode() and llama_process() throw nothing either: where memory ends they return
// -2 with a sentence in alora_last_error(), nothing of the batch is in the cache, and the next call
// tries again. They refuse, with -1, batches that upstream would end the process for.
#ifndef ALORA_H
#define ALORA_H

#include "llama.h"

#define ALORA_API_VERSION 9

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t alora_slot;

// The first slot of vectors and combinations, which take no room in the stacks of adapters.
#define ALORA_FIRST_COMPOSITE 0x10000

enum alora_status {
    ALORA_OK           = 0,
    ALORA_ERR_ARGUMENT = -1,  // null pointer; slot, sequence, position or scale out of range
    ALORA_ERR_FORMAT   = -2,  // not a GGUF adapter, or one with malformed metadata or tensors
    ALORA_ERR_MISMATCH = -3,  // a well-formed adapter that this base cannot use
    ALORA_ERR_BUSY     = -4,  // the slot is active on a sequence
    ALORA_ERR_MEMORY   = -5,  // a buffer could not be allocated
    ALORA_ERR_SERVER   = -6,  // no server there, none of this release, or one that was lost
};

// What the bank and the graphs of a context amount to; for tests, benchmarks and reports.
struct alora_stats {
    int64_t n_reserves;     // worst-case graphs reserved since the context was created
    int64_t n_graphs;       // graphs built for a batch (a batch that reuses the last one adds none)
    int64_t n_nodes;        // nodes of the graph that the last batch used
    int64_t compute_bytes;  // compute buffers of all backends
    int64_t bank_bytes;     // adapter buffers of all backends
    int32_t n_targets;      // targets of the bank
    int32_t n_slots;        // slots the bank has room for, the base's slot 0 included
    int32_t n_adapters;     // slots in use, slot 0 not counted
    int32_t rank;           // largest rank that fits without growing, 0 while there is no target
    int32_t n_attention;    // nodes of that graph that are attention of ours, not upstream's
    int32_t n_skipped;      // products of adapters, in all graphs built so far, that were left out
                            // because their rows were not tokens: always 0, or this is at fault
    int32_t n_vectors;      // vectors that are loaded
    int32_t n_steered;      // points of that graph at which vectors act
};

// Where in block `layer` a part of a vector acts; h is that tensor, a row per token.
enum alora_hook {
    ALORA_HOOK_BLOCK =
            0,  // the residual stream behind the block, where llama.cpp adds its control vector
    ALORA_HOOK_ATTENTION =
            1,           // what the block's attention returns, before anything else is done to it
    ALORA_HOOK_FFN = 2,  // what its FFN returns, likewise
};

// What it does there, with s = its scale times the activation's and V its directions.
enum alora_edit {
    ALORA_EDIT_ADD     = 0,  // h + s v
    ALORA_EDIT_PROJECT = 1,  // h - s V'(V h), for orthonormal rows of V; s = 1 removes them
    ALORA_EDIT_PROJECT_POSITIVE = 2,  // h - s V' max(V h, 0): only what points along them
    ALORA_EDIT_ADD_KEEP_NORM    = 3,  // (h + s v) |h| / |h + s v|
};

// Whose node computes attention on the CPU. Ours reads cells once for all tokens that see them, and sums
// in F32; upstream's has stock's bits. For which cells and heads ours can be is in native/README.md;
// everything else is upstream's whatever is asked for.
enum alora_attention_mode {
    ALORA_ATTENTION_UPSTREAM =
            0,                  // tokens of the base: upstream's; adapted ones: whichever is faster
    ALORA_ATTENTION_AUTO  = 1,  // every token: whichever is faster
    ALORA_ATTENTION_STOCK = 2,  // every token: upstream's; this and the next are for comparisons
    ALORA_ATTENTION_OURS  = 3,  // every token: ours, also where it is slower
};

struct alora_part {
    int32_t       layer;         // zero-based
    int32_t       hook;          // alora_hook
    int32_t       edit;          // alora_edit
    int32_t       n_directions;  // 1 for what is added
    float         scale;
    const float * directions;  // [n_directions][n_embd]
};

// ALORA_API_VERSION of the library that is loaded.
LLAMA_API int32_t alora_api_version(void);

// The sentence that belongs to this thread's last call of a function of this header, llama_decode(),
// llama_encode() or llama_process(), "" if it did not fail for a reason of ours; valid until the next.
LLAMA_API const char * alora_last_error(void);

// Makes room for n_adapters adapters of up to `rank` before the first is added, so that adding
// them reserves once at most. Never shrinks. n_adapters in [1, 1023], rank in [1, 4096].
LLAMA_API int32_t alora_bank_reserve(struct llama_context * ctx, int32_t n_adapters, int32_t rank);

// Adds an adapter from the bytes of its GGUF file (not kept). Returns its slot (>= 1) or an error.
//
// Checked: metadata and its types, tensor pairs, names, types, shapes, finite values, and that the
// architecture's graph uses each target in a way the bank can change. An adapter of which one
// target fails is refused whole, and so is one for weights that are divided over several devices.
// alpha/rank multiplies A·x together with an activation's scale, of which 1 is the adapter as trained.
//
// Does not reserve when its targets and ranks fit the bank; otherwise the bank grows and the
// context reserves once, before this returns. Where the CPU multiplies an adapter has memory of its own,
// as much as its file; on devices all slots share stacks, which move when they grow.
LLAMA_API alora_slot alora_adapter_add(struct llama_context * ctx, const void * gguf, size_t size);

// Adds a vector, whose parts (not kept) may act at several layers, hooks and ways. All that act on one
// token at one place read the same h and their changes are summed; if any keeps the norm, the whole is
// rescaled to |h| once. So their order means nothing but for rounding. Returns its slot or an error.
//
// Refused: another width than the stream's, layers outside, values that are not finite, and places
// that the architecture's graph does not have or has several of; where a block adds up several FFNs
// (experts beside a shared one) a projection acts on each, and nothing else can.
//
// Does not reserve when graphs were reserved with vectors at all its places before; otherwise the
// context reserves once, before this returns.
LLAMA_API alora_slot alora_vector_add(
        struct llama_context * ctx, const struct alora_part * parts, int32_t n_parts,
        int32_t n_embd);

// A slot for several: `slots`, each at its scale, which an activation's scale multiplies. Of adapters there
// can be one, of vectors any number, and combinations are taken for what they stand for; the same one
// twice counts with the sum of its scales. Their order means nothing. Reserves and builds nothing.
LLAMA_API alora_slot alora_combine(
        struct llama_context * ctx, int32_t n, const alora_slot * slots, const float * scales);

// Shows what flows at a hook: from now on every graph has copies of those tensors, vectors' edits
// included, one named "alora_shown-<layer>" for each that a layer has, which the context's cb_eval can
// look at. -1: no hook's, as in the beginning. Reserves if that changes it.
LLAMA_API int32_t alora_show(struct llama_context * ctx, int32_t hook);

// Frees a slot for another adapter, vector or combination. ALORA_ERR_BUSY while any activation or
// combination names it.
LLAMA_API int32_t alora_adapter_remove(struct llama_context * ctx, alora_slot slot);

// Tokens of `seq` at positions >= first use `slot` at `scale` (finite; multiplies the adapter's own
// alpha/rank) in every later llama_decode(). Replaces the sequence's activations from `first` on and
// keeps those before it, so slot 0 ends an activation at a position. Only records it: nothing is
// built, reserved or allocated on a device, and cells already in the cache stay as they are. Positions
// are those of llama_decode(): llama_memory_seq_add(), _div() and _cp() do not move or copy activations.
LLAMA_API int32_t alora_activate(
        struct llama_context * ctx, llama_seq_id seq, llama_pos first, alora_slot slot,
        float scale);

// Forgets all activations of `seq`, or of every sequence when seq is -1.
LLAMA_API int32_t alora_deactivate(struct llama_context * ctx, llama_seq_id seq);

// The slot that a token of `seq` at `pos` uses, and its scale (may be NULL; 1 for slot 0).
LLAMA_API alora_slot alora_slot_at(
        const struct llama_context * ctx, llama_seq_id seq, llama_pos pos, float * scale);

// Attention multiplies cells that a token must not see by zero, and a recurrent state is cleared the
// same way; what is not finite stays so, and one sequence's would reach all others. So whoever lets
// several sequences share a context asks after each llama_decode() whether what it wrote is finite,
// removes what is not, and calls alora_clear_free_cells().
//
// finite[i]: whether the keys and values of seqs[i] at positions [begins[i], ends[i]), and its
// recurrent state, are. With flash attention an F32 cell beyond what F16 holds counts as not finite,
// as upstream reads it as F16. On a device, which has to send them to the host, only looked at while
// the bank has an adapter. Nor are those that have more cells than positions, which only a forged
// state does. Returns how many are not.
LLAMA_API int32_t alora_finite_cells(
        struct llama_context * ctx, int32_t n, const llama_seq_id * seqs, const llama_pos * begins,
        const llama_pos * ends, bool * finite);

// The same of what a batch that was decoded has written, whose tokens have positions and one sequence
// each; for every llama_decode(), where finding out whose it is can wait. On a device only what adapted
// tokens wrote is looked at. Returns 0 if it is finite.
LLAMA_API int32_t alora_finite_batch(struct llama_context * ctx, struct llama_batch batch);

// Sets the cells and states that no sequence has to zero: after a llama_decode() that failed, or
// wrote what is not finite.
LLAMA_API int32_t alora_clear_free_cells(struct llama_context * ctx);

// From now on no cell is taken from a sequence because it lies outside its sliding window: upstream
// does so even with swa_full, and what a sequence is to be rewound to, or forked at, would be gone.
// Caches with fewer cells than the context (without swa_full) go on as before.
LLAMA_API int32_t alora_keep_cells(struct llama_context * ctx);

// How attention is computed from the next llama_decode() on; a context begins with
// ALORA_ATTENTION_UPSTREAM, so that a program that knows nothing of this has stock's bits. In every mode a
// token of the base has the bits that it has in a batch of as many of the base alone, whatever is beside it.
// Cells made one way serve the other: they differ as they do between batches of other sizes.
LLAMA_API int32_t alora_attention_set(struct llama_context * ctx, int32_t mode);

// While it is on, llama_decode() stops soon and returns 2, as upstream's abort callback has it (on
// the CPU: between two nodes of the graph; elsewhere, where the backend can). The first call on a
// context installs that callback and must not run during a llama_decode(); later ones may come at
// any time from any thread. A callback of the caller's own is asked as well.
LLAMA_API int32_t alora_interrupt(struct llama_context * ctx, bool on);

// llama_tokenize(), which throws where memory ends or a vocabulary lacks a byte: `n_made` gets what it
// returns, a number of tokens or, negative, how many there would be.
LLAMA_API int32_t alora_tokenize(
        const struct llama_vocab * vocab, const char * text, int32_t n_text, llama_token * tokens,
        int32_t n_max, bool add_special, bool parse_special, int32_t * n_made);

// llama_vocab_get_attr() of all tokens, of which there are llama_vocab_n_tokens().
LLAMA_API int32_t alora_token_attributes(const struct llama_vocab * vocab, int32_t * attributes);

LLAMA_API int32_t alora_stats_get(const struct llama_context * ctx, struct alora_stats * stats);

// llama.cpp's RPC: a model's layers, and their cells, on devices of other processes, each "host:port" an
// endpoint. What a program other than ours does with RPC is as it was, but that a server that is lost
// does not end its process.

// Fills llama_model_params.devices, of room for n_devices, with the devices of these servers, in order,
// then those of this machine that layers go to by themselves, then a null pointer. Returns how many there
// are, or ALORA_ERR_SERVER if one does not answer within seconds, as it may not while it serves another
// process: a server has one client at a time.
LLAMA_API int32_t alora_rpc_devices(
        const char * const * endpoints, int32_t n_endpoints, ggml_backend_dev_t * devices,
        int32_t n_devices);

// ALORA_ERR_SERVER if one of these servers was lost since it was last connected to, else 0. Then what was
// read from its devices since is zeros, nothing that is on them can be had again, and it stays so until
// each model and context that uses it is freed. Sends nothing to a server that some model uses.
LLAMA_API int32_t alora_rpc_check(const char * const * endpoints, int32_t n_endpoints);

// Serves this machine's devices, or the CPU if it has none, at an endpoint whose host is an IPv4 address
// of this machine, until the process ends. Anybody who can connect can read and write its memory. `cache`
// is a folder for large tensors, so that they are sent once, or null. Returns only if it fails.
LLAMA_API int32_t alora_rpc_serve(const char * endpoint, const char * cache, int32_t n_threads);

#ifdef __cplusplus
}
#endif

#endif  // ALORA_H
