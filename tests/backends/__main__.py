"""Builds a backend's library ahead of the tests: python -m tests.backends NAME."""

import sys

from tests.backends import backend_library

NEEDS = {
    "blas": "OpenBLAS and pkg-config (Debian, Ubuntu: apt install libopenblas-dev pkg-config)",
    "vulkan": "glslc, SPIR-V's headers and Vulkan's from 1.3.272 on",
}

try:
    print(f"Testing with {backend_library(sys.argv[1])}")
except RuntimeError as error:
    needs = NEEDS.get(sys.argv[1], "what upstream's docs/build.md says")
    sys.exit(f"{error}\nThe {sys.argv[1]} backend was not built. It needs {needs}.")
