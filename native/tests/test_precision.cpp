// What an architecture asks of a product's precision stays when an adapter's part is added to it:
// ggml_prec_set_acc() finds an addition there and does nothing.
#include "alora.h"
#include "tiny_llama.h"

// Products with ffn_down and attn_output in the graphs, and how many of them sum in F32.
struct seen {
    int n     = 0;
    int n_f32 = 0;

    static bool look(ggml_tensor * t, bool ask, void * data) {
        auto & seen = *(struct seen *) data;
        if (ask && t->op == GGML_OP_MUL_MAT &&
                (strstr(t->src[0]->name, "ffn_down.weight") ||
                        strstr(t->src[0]->name, "attn_output"))) {
            const bool stack = strstr(t->src[0]->name, "bank_b") != nullptr;
            seen.n += !stack;
            seen.n_f32 += !stack && t->op_params[0] == GGML_PREC_F32;
        }
        return false;
    }
};

int main() {
    llama_backend_init();
    {
        const tiny_llama base("glm4");
        for (const bool adapted : { false, true }) {
            seen                 found;
            llama_context_params params = llama_context_default_params();
            params.n_ctx                = 64;
            params.cb_eval              = seen::look;
            params.cb_eval_user_data    = &found;
            llama_context_ptr ctx(llama_init_from_model(base.model.get(), params));
            CHECK(ctx);
            if (adapted) {
                const std::string bytes = tiny_llama::adapter(3, false, "glm4");
                const alora_slot  slot  = alora_adapter_add(ctx.get(), bytes.data(), bytes.size());
                CHECK(slot > 0);
                CHECK(alora_activate(ctx.get(), 0, 0, slot, 1.0f) == ALORA_OK);
            }
            llama_token token = 5;
            CHECK(llama_decode(ctx.get(), llama_batch_get_one(&token, 1)) == 0);
            CHECK(found.n >= 2 * tiny_llama::N_LAYER);
            CHECK(found.n_f32 == found.n);
        }
    }
    llama_backend_free();
    return 0;
}
