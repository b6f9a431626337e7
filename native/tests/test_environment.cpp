// A variable is what it was set to last, whoever did: on Windows a program and this library may have C
// libraries of their own, and Python's tells the system alone.
#include "alora-environment.h"
#include "check.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif

static const char NAME[] = "ALORA_TEST_VARIABLE";

static void tell_the_system(const char * value) {
#ifdef _WIN32
    CHECK(SetEnvironmentVariableA(NAME, value));
#else
    CHECK((value ? setenv(NAME, value, 1) : unsetenv(NAME)) == 0);
#endif
}

int main() {
    forget_variable(NAME);
    CHECK(alora_variable(NAME).empty());
    for (const char * value : { "standard", "auto" }) {
        tell_the_system(value);
        CHECK(alora_variable(NAME) == value);
    }
    forget_variable(NAME);
    CHECK(alora_variable(NAME).empty());
    tell_the_system("again");
    tell_the_system(nullptr);
    CHECK(alora_variable(NAME).empty());
    return 0;
}
