#include "alora-environment.h"

#include <cstdlib>
#include <string>

static std::string variable(const char * name) {
    const char * value = getenv(name);
    return value ? value : "";
}

alora_attention_path alora_attention_path_wanted() {
    const std::string path = variable("ALORA_CPU_ATTENTION");
    return path == "stock"  ? alora_attention_path::stock
           : path == "ours" ? alora_attention_path::ours
                            : alora_attention_path::choose;
}

bool alora_fusing_wanted() {
    return variable("ALORA_CPU_PATH") != "standard";
}
