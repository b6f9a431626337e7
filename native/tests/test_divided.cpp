// Bases whose weights are divided over devices, by tensors or by rows, refuse adapters in a sentence, and
// by tensors vectors too:
// upstream ends the process where it divides an adapter's matrices too.
#include "alora-target.h"
#include "alora.h"
#include "backend.h"
#include "ggml-backend-impl.h"
#include "tiny_context.h"

// The CPU twice stands for two devices; upstream itself cannot decode on these.
static void test_by_tensors() {
    const cpu_backend  cpu(1);
    ggml_backend_dev_t devices[] = { cpu.device, cpu.device, nullptr };
    llama_model_params params    = llama_model_default_params();
    const std::string  adapter   = tiny_llama::adapter(2);
    params.devices               = devices;
    params.n_gpu_layers          = 99;
    params.split_mode            = LLAMA_SPLIT_MODE_TENSOR;
    const tiny_llama  base("llama", params);
    context           ours(base);
    const alora_stats before = ours.stats();

    CHECK(alora_adapter_add(ours, adapter.data(), adapter.size()) == ALORA_ERR_MISMATCH);
    CHECK(strstr(alora_last_error(), "is divided over several devices"));
    CHECK(strstr(alora_last_error(), "split_mode = LLAMA_SPLIT_MODE_LAYER"));

    const std::vector<float> direction(tiny_llama::N_EMBD, 0.1f);
    const alora_part part = { 0, ALORA_HOOK_BLOCK, ALORA_EDIT_ADD, 1, 1.0f, direction.data() };
    CHECK(alora_vector_add(ours, &part, 1, tiny_llama::N_EMBD) == ALORA_ERR_MISMATCH);
    CHECK(strstr(alora_last_error(), "are divided over several devices"));
    CHECK(ours.stats().n_vectors == 0);
    CHECK(ours.stats().n_targets == 0 && ours.stats().bank_bytes == before.bank_bytes);
}

// SYCL's buffers of rows are told by their name alone.
static void test_by_rows() {
    const cpu_backend        cpu(1);
    ggml_backend_buffer_type type   = *ggml_backend_dev_buffer_type(cpu.device);
    ggml_backend_buffer      buffer = {};
    ggml_tensor              weight = {};
    alora_target             target = {};
    target.weight                   = &weight;
    weight.buffer                   = &buffer;
    buffer.buft                     = &type;
    type.device                     = cpu.device;
    CHECK(!target.divided());
    type.iface.get_name = [](ggml_backend_buffer_type_t) { return "SYCL_Split"; };
    CHECK(target.divided());
    type.iface.get_name = [](ggml_backend_buffer_type_t) { return "SYCL0"; };
    CHECK(!target.divided());
}

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    test_by_tensors();
    test_by_rows();
    return 0;
}
