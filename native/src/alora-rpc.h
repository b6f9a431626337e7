// llama.cpp's RPC backend: devices of other processes. It is a library beside this one, which is loaded
// when it is first asked for, so its functions are found by their names.
#pragma once

#include "ggml-backend.h"

#include <string>
#include <vector>

// Those of the servers in order, then this machine's own. Throws alora_error.
std::vector<ggml_backend_dev_t> alora_rpc_devices_of(const std::vector<std::string> & endpoints);

// Throws alora_error if one was lost.
void alora_rpc_expect(const std::vector<std::string> & endpoints);

// Ends with the process, or throws alora_error if it fails.
[[noreturn]] void alora_rpc_serve_at(
        const std::string & endpoint, const char * cache, size_t n_threads);
