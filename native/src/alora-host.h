// Which memory the CPU computes with.
#pragma once

#include "ggml-backend.h"

// Whether it is the CPU's, or a device's that lies on the host: other memory of a device may be
// readable too, but then the device computes with it.
inline bool alora_on_cpu(ggml_backend_buffer_type_t buft) {
    const ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
    return ggml_backend_buft_is_host(buft) &&
           (!dev || ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU ||
                   buft == ggml_backend_dev_host_buffer_type(dev));
}
