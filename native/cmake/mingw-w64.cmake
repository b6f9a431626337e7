# Windows on x86-64, compiled elsewhere with mingw-w64's GCC; what is built runs under Wine, if that is
# installed (Debian, Ubuntu: apt install g++-mingw-w64-x86-64-posix wine wine64).
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)

# Debian has a second variant, win32, whose C++ library has no std::thread.
find_program(ALORA_MINGW_CC NAMES x86_64-w64-mingw32-gcc-posix x86_64-w64-mingw32-gcc REQUIRED)
find_program(ALORA_MINGW_CXX NAMES x86_64-w64-mingw32-g++-posix x86_64-w64-mingw32-g++ REQUIRED)
set(CMAKE_C_COMPILER "${ALORA_MINGW_CC}")
set(CMAKE_CXX_COMPILER "${ALORA_MINGW_CXX}")
find_program(CMAKE_RC_COMPILER NAMES x86_64-w64-mingw32-windres)

# Programs are this machine's, all else is Windows's.
set(CMAKE_FIND_ROOT_PATH /usr/x86_64-w64-mingw32)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

# A Windows of the build's own, without the questions that a new one asks; its errors are the programs'.
find_program(ALORA_WINE NAMES wine64 wine)
if(ALORA_WINE)
    set(CMAKE_CROSSCOMPILING_EMULATOR
        "${CMAKE_COMMAND}" -E env "WINEPREFIX=${CMAKE_BINARY_DIR}/wine" WINEDEBUG=-all
        "WINEDLLOVERRIDES=mscoree,mshtml=" "${ALORA_WINE}")
endif()
