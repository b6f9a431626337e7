// Memory for the nodes of a context, which are computed one after the other.
#pragma once

#include <cstdint>
#include <memory>

class alora_workspace {
  public:
    // Room for `n` floats, aligned to a cache line; what was in there before may be gone. False if
    // there is no memory: the room is as it was.
    bool reserve(int64_t n);

    float * data() const { return aligned; }
    int64_t size() const { return n_floats; }

  private:
    std::unique_ptr<float[]> memory;
    float *                  aligned  = nullptr;
    int64_t                  n_floats = 0;
};
