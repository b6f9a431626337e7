// Parsing: what a sound adapter gives, and the sentence for each unsound one.
#include "alora-error.h"
#include "alora-file.h"
#include "alora.h"
#include "check.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

using writer = std::function<void(gguf_context *, ggml_context *)>;

static void add_tensor(gguf_context * gguf, ggml_context * ctx, const char * name, ggml_type type) {
    ggml_tensor * t = ggml_new_tensor_2d(ctx, type, 32, 4);
    memset(t->data, 0, ggml_nbytes(t));
    ggml_set_name(t, name);
    gguf_add_tensor(gguf, t);
}

// The bytes of a sound adapter after `change`.
static std::vector<uint8_t> adapter(const writer & change) {
    gguf_context_ptr gguf(gguf_init_empty());
    ggml_context_ptr ctx(ggml_init({ 1 << 20, nullptr, false }));

    gguf_set_val_str(gguf.get(), "general.type", "adapter");
    gguf_set_val_str(gguf.get(), "general.architecture", "llama");
    gguf_set_val_str(gguf.get(), "adapter.type", "lora");
    gguf_set_val_f32(gguf.get(), "adapter.lora.alpha", 16.0f);
    const uint32_t tokens[] = { 5, 5, 6 };
    gguf_set_arr_data(gguf.get(), "adapter.alora.invocation_tokens", GGUF_TYPE_UINT32, tokens, 3);
    add_tensor(gguf.get(), ctx.get(), "blk.0.attn_q.weight.lora_a", GGML_TYPE_F16);
    add_tensor(gguf.get(), ctx.get(), "blk.0.attn_q.weight.lora_b", GGML_TYPE_F32);
    change(gguf.get(), ctx.get());

    std::vector<uint8_t> bytes(gguf_get_meta_size(gguf.get()));
    gguf_get_meta_data(gguf.get(), bytes.data());
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf.get()); ++i) {
        const size_t end = gguf_get_meta_size(gguf.get()) + gguf_get_tensor_offset(gguf.get(), i);
        bytes.resize(end + GGML_PAD(gguf_get_tensor_size(gguf.get(), i), GGUF_DEFAULT_ALIGNMENT));
    }
    return bytes;
}

static void check_refused(const std::vector<uint8_t> & bytes, const std::string & sentence) {
    try {
        alora_file file(bytes.data(), bytes.size());
    } catch (const alora_error & error) {
        if (std::string(error.what()).find(sentence) == std::string::npos) {
            std::fprintf(stderr, "'%s' does not say '%s'\n", error.what(), sentence.c_str());
        }
        CHECK(error.status == ALORA_ERR_FORMAT);
        CHECK(std::string(error.what()).find(sentence) != std::string::npos);
        return;
    }
    std::fprintf(stderr, "accepted, but should say '%s'\n", sentence.c_str());
    CHECK(false);
}

static void test_a_sound_adapter() {
    const auto       bytes = adapter([](gguf_context *, ggml_context *) {});
    const alora_file file(bytes.data(), bytes.size());
    CHECK(file.architecture == "llama");
    CHECK(file.alpha == 16.0f);
    CHECK((file.invocation == std::vector<llama_token>{ 5, 5, 6 }));
    CHECK(file.pairs.size() == 1);
    const alora_pair & pair = file.pairs.at("blk.0.attn_q.weight");
    CHECK(pair.a.info->type == GGML_TYPE_F16 && pair.b.info->type == GGML_TYPE_F32);
    CHECK((const uint8_t *) pair.b.data + ggml_nbytes(pair.b.info) <= bytes.data() + bytes.size());
}

static void test_metadata() {
    check_refused(
            adapter([](auto * g, auto *) { gguf_set_val_u32(g, "general.type", 1); }),
            "'general.type' should be of type str");
    check_refused(
            adapter([](auto * g, auto *) { gguf_set_val_str(g, "general.type", "model"); }),
            "should be 'adapter' but is 'model'");
    check_refused(
            adapter([](auto * g, auto *) { gguf_remove_key(g, "general.type"); }),
            "'general.type' is missing");
    check_refused(
            adapter([](auto * g, auto *) { gguf_set_val_f32(g, "adapter.type", 1); }),
            "'adapter.type' should be of type str");
    check_refused(
            adapter([](auto * g, auto *) { gguf_set_val_bool(g, "general.architecture", true); }),
            "'general.architecture' should be of type str");
    check_refused(
            adapter([](auto * g, auto *) { gguf_set_val_str(g, "adapter.lora.alpha", "16"); }),
            "'adapter.lora.alpha' should be of type f32");
    for (const float alpha : { 0.0f, std::nanf(""), std::numeric_limits<float>::infinity() }) {
        check_refused(
                adapter([=](auto * g, auto *) {
                    gguf_set_val_f32(g, "adapter.lora.alpha", alpha);
                }),
                "should be finite and not 0");
    }
}

static void test_invocation() {
    const char * key = "adapter.alora.invocation_tokens";
    check_refused(
            adapter([=](auto * g, auto *) { gguf_set_val_u32(g, key, 5); }),
            "should be of type arr");
    check_refused(
            adapter([=](auto * g, auto *) {
                gguf_set_arr_data(g, key, GGUF_TYPE_UINT32, nullptr, 0);
            }),
            "is empty");
    const double tokens[] = { 5.0 };
    check_refused(
            adapter([=](auto * g, auto *) {
                gguf_set_arr_data(g, key, GGUF_TYPE_FLOAT64, tokens, 1);
            }),
            "should hold uint32");
}

static void test_tensors() {
    check_refused(
            adapter([](auto * g, auto * c) {
                add_tensor(g, c, "blk.1.attn_q.weight.lora_a", GGML_TYPE_F32);
            }),
            "'blk.1.attn_q.weight.lora_b' is missing");
    check_refused(
            adapter([](auto * g, auto * c) {
                add_tensor(g, c, "blk.1.attn_q.weight.lora_b", GGML_TYPE_F32);
            }),
            "'blk.1.attn_q.weight.lora_a' is missing");
    check_refused(
            adapter([](auto * g, auto * c) {
                add_tensor(g, c, "blk.1.attn_norm.weight", GGML_TYPE_F32);
            }),
            "neither a .lora_a nor a .lora_b");
    check_refused(
            adapter([](auto * g, auto * c) { add_tensor(g, c, ".lora_a", GGML_TYPE_F32); }),
            "neither a .lora_a nor a .lora_b");
    for (const ggml_type type : { GGML_TYPE_I32, GGML_TYPE_F64, GGML_TYPE_Q4_0 }) {
        check_refused(
                adapter([=](auto * g, auto * c) {
                    add_tensor(g, c, "blk.1.attn_q.weight.lora_a", type);
                }),
                "F32, F16, BF16 and Q8_0 are supported");
    }
}

static void test_damage() {
    check_refused({ 'G', 'G', 'U', 'F' }, "not a GGUF file");
    check_refused(std::vector<uint8_t>(1000, 'x'), "not a GGUF file");
    // cut off anywhere: refused, never read past
    const auto bytes = adapter([](gguf_context *, ggml_context *) {});
    for (size_t size = 0; size < bytes.size() - GGUF_DEFAULT_ALIGNMENT; size += 7) {
        check_refused(std::vector<uint8_t>(bytes.begin(), bytes.begin() + size), "");
    }
}

int main() {
    test_a_sound_adapter();
    test_metadata();
    test_invocation();
    test_tensors();
    test_damage();
    return 0;
}
