// Environment variables that settings come from.
#pragma once

#include <string>

// What the process's variable is set to now; empty if it is not set.
std::string alora_variable(const char * name);
