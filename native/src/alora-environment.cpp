#include "alora-environment.h"

#include "alora-windows.h"

#include <cstdlib>

std::string alora_variable(const char * name) {
#ifdef _WIN32
    // Not getenv(): a C library has a copy of its own, and Python's need not be the one of this library.
    std::string value(1 << 15, '\0');  // the longest that Windows has
    value.resize(GetEnvironmentVariableA(name, &value[0], (DWORD) value.size()));
    return value;
#else
    const char * value = getenv(name);
    return value ? value : "";
#endif
}
