"""Lets `import llama_cpp` find alora-gguf's library where it has none of its own.

Installed as alora-gguf's dependency, llama-cpp-python comes without one. `import alora_gguf` says
where ours is; this says it to programs that import llama_cpp alone, or first. alora_gguf.pth has it
imported whenever Python starts, so it loads nothing then, and does nothing but wait.
"""

import os
import sys


class Announcer:
    """A finder that finds nothing: it is told the name of what is imported before others are."""

    done = False

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        """Called for every import."""
        del path, target
        if name == "llama_cpp" and not cls.done:
            cls.done = True
            if not has_own():
                from contextlib import suppress

                with suppress(Exception):  # llama_cpp then says what is missing
                    import alora_gguf  # noqa: F401 - which sets LLAMA_CPP_LIB_PATH


def has_own() -> bool:
    """Whether the llama_cpp that is going to be imported has a library of its own, which it keeps
    unless alora_gguf is imported before it.
    """
    for place in sys.path:
        folder = f"{place or '.'}/llama_cpp"
        if os.access(folder, os.F_OK):  # pathlib is loaded by whoever needs it
            return os.access(f"{folder}/lib", os.F_OK)
    return False


sys.meta_path.insert(0, Announcer)
