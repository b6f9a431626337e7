#include "alora-rpc.h"

#include "alora-backends.h"
#include "alora-error.h"
#include "alora.h"

#include <mutex>

#ifdef _WIN32
static const char * const FILE_NAME = "ggml-rpc.dll";
#else
static const char * const FILE_NAME = "libggml-rpc.so";  // a module, whose suffix macOS has as well
#endif

static ggml_backend_reg_t load_rpc() {
    static std::mutex           mutex;
    std::lock_guard<std::mutex> lock(mutex);
    ggml_backend_reg_t          reg = ggml_backend_reg_by_name("RPC");
    if (!reg) {
        reg = ggml_backend_load((alora_own_folder() + "/" + FILE_NAME).c_str());
    }
    if (!reg) {
        throw alora_error(
                ALORA_ERR_SERVER,
                std::string(FILE_NAME) + " is missing beside libllama, or damaged");
    }
    return reg;
}

template <typename F> static F * function_of(const char * name) {
    auto * function = (F *) ggml_backend_reg_get_proc_address(load_rpc(), name);
    if (!function) {
        throw alora_error(
                ALORA_ERR_SERVER, std::string(FILE_NAME) + " is another release's: has no " + name);
    }
    return function;
}

static bool is_lost(const std::string & endpoint) {
    return function_of<bool(const char *)>("ggml_backend_rpc_lost")(endpoint.c_str());
}

// Those that llama.cpp gives layers to where nobody names any: upstream takes a processor's graphics
// only if there is nothing else.
static void add_own(std::vector<ggml_backend_dev_t> & devices) {
    std::vector<ggml_backend_dev_t> integrated, own;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);
        switch (ggml_backend_dev_type(dev)) {
            case GGML_BACKEND_DEVICE_TYPE_GPU:
                own.push_back(dev);
                break;
            case GGML_BACKEND_DEVICE_TYPE_IGPU:
                integrated.push_back(dev);
                break;
            default:
                break;
        }
    }
    if (own.empty()) {
        own.swap(integrated);
    }
    devices.insert(devices.end(), own.begin(), own.end());
}

std::vector<ggml_backend_dev_t> alora_rpc_devices_of(const std::vector<std::string> & endpoints) {
    auto * add_server =
            function_of<ggml_backend_reg_t(const char *)>("ggml_backend_rpc_add_server");
    std::vector<ggml_backend_dev_t> devices;
    for (const std::string & endpoint : endpoints) {
        if (is_lost(endpoint)) {
            throw alora_error(
                    ALORA_ERR_SERVER,
                    endpoint +
                            ": no RPC server of this release of llama.cpp answers there, or a "
                            "model that is still open lost it; `alora-gguf rpc-server` is one, "
                            "which serves one process at a time");
        }
        ggml_backend_reg_t reg = add_server(endpoint.c_str());
        if (!reg) {
            throw alora_error(ALORA_ERR_SERVER, endpoint + ": the RPC server has no devices");
        }
        for (size_t i = 0; i < ggml_backend_reg_dev_count(reg); i++) {
            devices.push_back(ggml_backend_reg_dev_get(reg, i));
        }
    }
    add_own(devices);
    return devices;
}

void alora_rpc_expect(const std::vector<std::string> & endpoints) {
    for (const std::string & endpoint : endpoints) {
        if (is_lost(endpoint)) {
            throw alora_error(
                    ALORA_ERR_SERVER,
                    endpoint +
                            ": the RPC server was lost, and with it the layers and the cells that "
                            "it held");
        }
    }
}

[[noreturn]] void alora_rpc_serve_at(
        const std::string & endpoint, const char * cache, size_t n_threads) {
    auto * start =
            function_of<void(const char *, const char *, size_t, size_t, ggml_backend_dev_t *)>(
                    "ggml_backend_rpc_start_server");
    std::vector<ggml_backend_dev_t> devices;
    add_own(devices);
    if (devices.empty()) {
        devices.push_back(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    }
    start(endpoint.c_str(), cache, n_threads, devices.size(), devices.data());
    throw alora_error(
            ALORA_ERR_SERVER,
            endpoint + ": the server ended: nothing can listen there, or a device cannot be used");
}
