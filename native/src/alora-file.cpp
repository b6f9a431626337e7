#include "alora-file.h"

#include "alora-error.h"
#include "alora-guard.h"
#include "alora-pack.h"
#include "alora.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// Where a GGUF file says how many tensors it has, the fewest bytes that describe one, and what
// upstream takes besides to read a file.
static constexpr size_t TENSORS_AT    = 8;
static constexpr size_t SMALLEST_INFO = 24;
static constexpr size_t READING_BYTES = 1 << 20;

static alora_error malformed(const std::string & what) {
    return alora_error(ALORA_ERR_FORMAT, what);
}

// gguf_get_val_*() abort on a value of another type, so the type is checked first
static int64_t find_typed(const gguf_context * gguf, const char * key, gguf_type type) {
    const int64_t id = gguf_find_key(gguf, key);
    if (id >= 0 && gguf_get_kv_type(gguf, id) != type) {
        throw malformed(
                std::string("key '") + key + "' should be of type " + gguf_type_name(type) +
                " but is " + gguf_type_name(gguf_get_kv_type(gguf, id)));
    }
    return id;
}

static std::string string_value(const gguf_context * gguf, const char * key) {
    const int64_t id = find_typed(gguf, key, GGUF_TYPE_STRING);
    if (id < 0) {
        throw malformed(std::string("key '") + key + "' is missing");
    }
    return gguf_get_val_str(gguf, id);
}

static void expect_value(
        const gguf_context * gguf, const char * key, const std::string & expected) {
    const std::string found = string_value(gguf, key);
    if (found != expected) {
        throw malformed(
                std::string("key '") + key + "' should be '" + expected + "' but is '" + found +
                "'");
    }
}

static float alpha_value(const gguf_context * gguf) {
    const char *  key = "adapter.lora.alpha";
    const int64_t id  = find_typed(gguf, key, GGUF_TYPE_FLOAT32);
    if (id < 0) {
        return 0.0f;
    }
    const float alpha = gguf_get_val_f32(gguf, id);
    if (!std::isfinite(alpha) || alpha == 0.0f) {
        throw malformed(
                std::string("key '") + key + "' should be finite and not 0 but is " +
                std::to_string(alpha));
    }
    return alpha;
}

static std::vector<llama_token> invocation_value(const gguf_context * gguf) {
    const char *  key = "adapter.alora.invocation_tokens";
    const int64_t id  = find_typed(gguf, key, GGUF_TYPE_ARRAY);
    if (id < 0) {
        return {};
    }
    const gguf_type type = gguf_get_arr_type(gguf, id);
    if (type != GGUF_TYPE_UINT32 && type != GGUF_TYPE_INT32) {
        throw malformed(
                std::string("key '") + key + "' should hold uint32 values but holds " +
                gguf_type_name(type));
    }
    const size_t n = gguf_get_arr_n(gguf, id);
    if (n == 0) {
        throw malformed(
                std::string("key '") + key +
                "' is empty: an aLoRA without an invocation is never on");
    }
    const auto * tokens = (const llama_token *) gguf_get_arr_data(gguf, id);
    return { tokens, tokens + n };
}

static bool strip_suffix(std::string & name, const std::string & suffix) {
    if (name.size() <= suffix.size() ||
            name.compare(name.size() - suffix.size(), suffix.size(), suffix) != 0) {
        return false;
    }
    name.resize(name.size() - suffix.size());
    return true;
}

alora_file::alora_file(const void * data, size_t size) {
    ggml_context *   ctx    = nullptr;
    gguf_init_params params = { /*.no_alloc =*/true, /*.ctx =*/&ctx };

    // upstream makes a header of each tensor that the file says it has; no file says more than fit
    uint64_t n_tensors = 0;
    if (size >= TENSORS_AT + sizeof(n_tensors)) {
        memcpy(&n_tensors, (const char *) data + TENSORS_AT, sizeof(n_tensors));
    }
    n_tensors = std::min(n_tensors, (uint64_t) size / SMALLEST_INFO);
    alora_expect_memory((n_tensors + 1) * ggml_tensor_overhead() + READING_BYTES);

    gguf.reset(gguf_init_from_buffer(data, size, params));
    if (!gguf) {
        throw malformed("not a GGUF file, or a damaged one");
    }
    infos.reset(ctx);

    expect_value(gguf.get(), "general.type", "adapter");
    expect_value(gguf.get(), "adapter.type", "lora");
    architecture = string_value(gguf.get(), "general.architecture");
    alpha        = alpha_value(gguf.get());
    invocation   = invocation_value(gguf.get());

    const size_t begin = gguf_get_data_offset(gguf.get());
    for (ggml_tensor * info = ggml_get_first_tensor(ctx); info;
            info            = ggml_get_next_tensor(ctx, info)) {
        std::string target = info->name;
        const bool  is_a   = strip_suffix(target, ".lora_a");
        if (!is_a && !strip_suffix(target, ".lora_b")) {
            throw malformed("tensor '" + target + "' is neither a .lora_a nor a .lora_b");
        }
        if (!alora_type_readable(info->type)) {
            throw malformed(
                    std::string("tensor '") + info->name + "' has type " +
                    ggml_type_name(info->type) + "; F32, F16, BF16 and Q8_0 are supported");
        }
        const size_t offset = begin + gguf_get_tensor_offset(
                                              gguf.get(), gguf_find_tensor(gguf.get(), info->name));
        if (offset > size || ggml_nbytes(info) > size - offset) {
            throw malformed(
                    std::string("tensor '") + info->name + "' reaches past the end of the file");
        }
        alora_pair & pair        = pairs[target];
        (is_a ? pair.a : pair.b) = { info, (const uint8_t *) data + offset };
    }

    if (pairs.empty()) {
        throw malformed("no tensors: the adapter would do nothing");
    }
    for (const auto & [target, pair] : pairs) {
        if (!pair.a.info || !pair.b.info) {
            throw malformed(
                    "tensor '" + target + (pair.a.info ? ".lora_b" : ".lora_a") + "' is missing");
        }
    }
}
