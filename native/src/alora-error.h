// What goes wrong inside, and the sentence behind alora_last_error().
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

// Thrown inward, and turned into its status (alora.h) by the C API; what() is a sentence for the user.
struct alora_error : std::runtime_error {
    int32_t status;

    alora_error(int32_t status, const std::string & what) :
        std::runtime_error(what), status(status) {}
};

// For failures that upstream's own functions report.
void alora_set_error(const std::string & what);
