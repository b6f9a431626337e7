// The sentence behind alora_last_error().
#pragma once

#include <string>

void alora_set_error(const std::string & what);
