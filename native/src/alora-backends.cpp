#include "alora-backends.h"

#include "alora-windows.h"
#include "ggml-backend.h"

#include <mutex>

#ifndef _WIN32
#include <dlfcn.h>
#endif

// This library's path in UTF-8, empty if the system does not tell.
static std::string own_path() {
#ifdef _WIN32
    HMODULE module = nullptr;
    if (!GetModuleHandleExW(
                GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS |
                        GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
                reinterpret_cast<LPCWSTR>(&alora_load_backends), &module)) {
        return {};
    }
    std::wstring path(1 << 15, L'\0');  // the longest that Windows has
    path.resize(GetModuleFileNameW(module, &path[0], (DWORD) path.size()));
    const int size = WideCharToMultiByte(
            CP_UTF8, 0, path.data(), (int) path.size(), nullptr, 0, nullptr, nullptr);
    std::string utf8(size, '\0');
    WideCharToMultiByte(
            CP_UTF8, 0, path.data(), (int) path.size(), &utf8[0], size, nullptr, nullptr);
    return utf8;
#else
    Dl_info    info;
    const bool known = dladdr(reinterpret_cast<const void *>(&alora_load_backends), &info) != 0;
    return known && info.dli_fname ? info.dli_fname : "";
#endif
}

// While it lives, ggml's log has warnings and errors alone: a line for each backend that loads would be
// on stderr in every program, where backends that are linked load without a word.
class quiet {
  public:
    quiet() {
        ggml_log_get(&log, &data);
        ggml_log_set(what_matters, this);
    }

    ~quiet() { ggml_log_set(log, data); }

  private:
    static void what_matters(ggml_log_level level, const char * text, void * self) {
        if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) {
            ((quiet *) self)->log(level, text, ((quiet *) self)->data);
        }
    }

    ggml_log_callback log  = nullptr;
    void *            data = nullptr;
};

static void load_backends() {
    const quiet without_news;
    ggml_backend_load_all_from_path(alora_own_folder().c_str());
}

std::string alora_own_folder() {
    const std::string path = own_path();
    const size_t      end  = path.find_last_of("/\\");
    return end == std::string::npos ? "." : path.substr(0, end);
}

void alora_load_backends() {
    static std::once_flag done;  // programs initialise llama.cpp from whatever thread they like
    std::call_once(done, load_backends);
}
