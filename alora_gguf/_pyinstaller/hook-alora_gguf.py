# ruff: noqa: N999 - the name that PyInstaller looks for
"""Everything of alora_gguf, as it lies in an installed package: modules are imported by name,
libraries and GGUF files are found beside them, and a wheel has its own llama_cpp.

PyTorch and what else training needs are left to programs that import it themselves.
"""

from PyInstaller.utils.hooks import (
    collect_data_files,
    collect_dynamic_libs,
    collect_submodules,
    copy_metadata,
)

hiddenimports = [
    *collect_submodules("alora_gguf", lambda name: "._" not in name),
    "llama_cpp",
    "llama_cpp.llama_chat_format",
    "uvicorn.protocols.http.auto",
]
excludedimports = ["torch", "transformers", "peft", "safetensors", "matplotlib"]
binaries = collect_dynamic_libs("alora_gguf")
datas = [
    *collect_data_files("alora_gguf"),
    *collect_data_files("alora_gguf", include_py_files=True, subdir="_vendor"),
    *copy_metadata("alora_gguf", recursive=True),
]
