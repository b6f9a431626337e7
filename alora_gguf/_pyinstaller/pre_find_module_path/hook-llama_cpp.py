"""A wheel's own llama_cpp comes behind whatever else is imported from, here as when it runs."""

from typing import Any

from alora_gguf.engine.library import vendored_binding


def pre_find_module_path(hook_api: Any) -> None:
    """Called by PyInstaller with the folders that it looks through for the module."""
    if (folder := vendored_binding()) is not None:
        hook_api.search_dirs = [*hook_api.search_dirs, folder]
