// A random Llama of two layers in a file, or another architecture built like it, loaded, and adapters
// for it: what tests of the library as a whole need.
#pragma once

#include "check.h"
#include "ggml-cpp.h"
#include "gguf.h"
#include "llama-cpp.h"

#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

struct tiny_llama {
    static constexpr int64_t N_EMBD = 64, N_HEAD = 4, N_HEAD_KV = 2, D_HEAD = 16, N_FF = 128;
    static constexpr int64_t N_VOCAB = 96, N_LAYER = 2;

    struct weight {
        std::string name;
        int64_t     n_in, n_out;
    };

    // All that an adapter may change.
    static std::vector<weight> weights(const std::string & arch = "llama") {
        const bool          glm4 = arch == "glm4";
        std::vector<weight> all;
        for (int64_t i = 0; i < N_LAYER; ++i) {
            const std::string blk = "blk." + std::to_string(i) + ".";
            all.push_back({ blk + "attn_q.weight", N_EMBD, N_EMBD });
            all.push_back({ blk + "attn_k.weight", N_EMBD, N_HEAD_KV * D_HEAD });
            all.push_back({ blk + "attn_v.weight", N_EMBD, N_HEAD_KV * D_HEAD });
            all.push_back({ blk + "attn_output.weight", N_EMBD, N_EMBD });
            if (!glm4) {
                all.push_back({ blk + "ffn_gate.weight", N_EMBD, N_FF });
            }
            all.push_back({ blk + "ffn_up.weight", N_EMBD, glm4 ? 2 * N_FF : N_FF });
            all.push_back({ blk + "ffn_down.weight", N_FF, N_EMBD });
        }
        all.push_back({ "output.weight", N_EMBD, N_VOCAB });
        return all;
    }

    static llama_model_params on_the_cpu() {
        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers       = 0;
        return params;
    }

    // "llama", the only one that has a vocabulary, "glm4", or "llada", which has no cache: it encodes.
    explicit tiny_llama(
            const std::string & arch = "llama", const llama_model_params & params = on_the_cpu()) :
        path(std::filesystem::temp_directory_path() / unique("alora-tiny-llama")) {
        gguf_file  file;
        const bool glm4 = arch == "glm4";
        file.text("general.architecture", arch.c_str());
        if (arch == "llama") {
            file.vocabulary();
        } else {
            file.text("tokenizer.ggml.model", "none");
        }
        for (const auto & [key, value] : std::vector<std::pair<const char *, int64_t>>{
                     { "vocab_size", N_VOCAB }, { "context_length", 512 },
                     { "embedding_length", N_EMBD }, { "block_count", N_LAYER },
                     { "feed_forward_length", N_FF }, { "attention.head_count", N_HEAD },
                     { "attention.head_count_kv", N_HEAD_KV },
                     { "rope.dimension_count", D_HEAD } }) {
            file.number((arch + "." + key).c_str(), (uint32_t) value);
        }
        file.real((arch + ".attention.layer_norm_rms_epsilon").c_str(), 1e-5f);
        for (const weight & w : weights(arch)) {
            file.tensor(w.name, w.n_in, w.n_out, 0.5f);
        }
        file.tensor("token_embd.weight", N_EMBD, N_VOCAB, 1.0f);
        file.tensor("output_norm.weight", N_EMBD, 0, 1.0f);
        for (int64_t i = 0; i < N_LAYER; ++i) {
            file.tensor("blk." + std::to_string(i) + ".attn_norm.weight", N_EMBD, 0, 1.0f);
            file.tensor("blk." + std::to_string(i) + ".ffn_norm.weight", N_EMBD, 0, 1.0f);
            for (const char * norm : { ".post_attention_norm.weight", ".post_ffw_norm.weight" }) {
                if (glm4) {
                    file.tensor("blk." + std::to_string(i) + norm, N_EMBD, 0, 1.0f);
                }
            }
        }
        file.write(path);

        model.reset(llama_model_load_from_file(path.string().c_str(), params));
        CHECK(model);
    }

    ~tiny_llama() {
        model.reset();
        std::error_code ignored;
        std::filesystem::remove(path, ignored);
    }

    // The bytes of an adapter of rank 4 for every weight, or for the embedding alone.
    static std::string adapter(
            uint32_t seed, bool embedding = false, const std::string & arch = "llama") {
        gguf_file file(seed);
        file.text("general.type", "adapter");
        file.text("general.architecture", arch.c_str());
        file.text("adapter.type", "lora");
        file.real("adapter.lora.alpha", 4.0f);
        if (embedding) {  // its A is looked up by row
            file.tensor("token_embd.weight.lora_a", 4, N_VOCAB, 0.3f);
            file.tensor("token_embd.weight.lora_b", 4, N_EMBD, 0.3f);
        }
        for (const weight & w : embedding ? std::vector<weight>() : weights(arch)) {
            file.tensor(w.name + ".lora_a", w.n_in, 4, 0.3f);
            file.tensor(w.name + ".lora_b", 4, w.n_out, 0.3f);
        }
        const auto at = std::filesystem::temp_directory_path() / unique("alora-tiny-adapter");
        file.write(at);
        std::string bytes(std::filesystem::file_size(at), 0);
        FILE *      from = fopen(at.string().c_str(), "rb");
        CHECK(from && fread(&bytes[0], 1, bytes.size(), from) == bytes.size());
        fclose(from);
        std::filesystem::remove(at);
        return bytes;
    }

    std::filesystem::path path;
    llama_model_ptr       model;

  private:
    static std::string unique(const char * stem) {
        return std::string(stem) + "-" + std::to_string(std::random_device()()) + ".gguf";
    }

    struct gguf_file {
        gguf_context_ptr gguf{ gguf_init_empty() };
        ggml_context_ptr ctx{ ggml_init({ 4 << 20, nullptr, false }) };
        std::mt19937     rng;

        explicit gguf_file(uint32_t seed = 1) : rng(seed) {}

        void text(const char * key, const char * value) {
            gguf_set_val_str(gguf.get(), key, value);
        }
        void number(const char * key, uint32_t value) { gguf_set_val_u32(gguf.get(), key, value); }
        void real(const char * key, float value) { gguf_set_val_f32(gguf.get(), key, value); }

        // Letters, alone and in pairs.
        void vocabulary() {
            std::vector<std::string> tokens = { "<unk>", "<s>", "</s>", "\u2581" };
            for (char c = 'a'; c <= 'z'; ++c) {
                tokens.push_back({ c });
            }
            for (int i = 0; tokens.size() < N_VOCAB; ++i) {
                tokens.push_back({ (char) ('a' + i % 26), (char) ('e' + i / 26) });
            }
            std::vector<const char *> texts;
            std::vector<float>        scores;
            std::vector<int32_t>      types(N_VOCAB, LLAMA_TOKEN_TYPE_NORMAL);
            for (const std::string & token : tokens) {
                texts.push_back(token.c_str());
                scores.push_back(-(float) scores.size());
            }
            types[0] = LLAMA_TOKEN_TYPE_UNKNOWN;
            types[1] = types[2] = LLAMA_TOKEN_TYPE_CONTROL;
            text("tokenizer.ggml.model", "llama");
            gguf_set_arr_str(gguf.get(), "tokenizer.ggml.tokens", texts.data(), N_VOCAB);
            gguf_set_arr_data(
                    gguf.get(), "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(), N_VOCAB);
            gguf_set_arr_data(
                    gguf.get(), "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(),
                    N_VOCAB);
        }

        // Random; of one dimension, ones, if n_out is 0.
        void tensor(const std::string & name, int64_t n_in, int64_t n_out, float size) {
            ggml_tensor * t = n_out ? ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_in, n_out)
                                    : ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, n_in);
            for (int64_t i = 0; i < ggml_nelements(t); ++i) {
                const float noise      = (float) ((int) (rng() % 2001) - 1000) / 1000.0f;
                ((float *) t->data)[i] = n_out ? size * noise : size;
            }
            ggml_set_name(t, name.c_str());
            gguf_add_tensor(gguf.get(), t);
        }

        void write(const std::filesystem::path & to) {
            CHECK(gguf_write_to_file(gguf.get(), to.string().c_str(), false));
        }
    };
};
