"""The files of the checkout that name the release, and writing all of them or none."""

from __future__ import annotations

import shutil
from pathlib import Path

from fetch_upstream import Pin

from .report import NATIVE, ROOT, UpgradeError

PIN = "native/upstream.txt"

# Where the release is named: what stands around it there. The changelog's place is in [Unreleased].
PLACES = {
    "requirements.txt": ("llama-cpp-python=={} ",),
    "pyproject.toml": ('"llama-cpp-python=={}"', '"llama-cpp-python[server]=={}"'),
    "alora_gguf/engine/library.py": ('LLAMA_CPP_PYTHON: Final = "{}"',),
    "docs/llama.md": ("`llama_cpp.Llama` {}:",),
    "THIRD_PARTY.md": ("the source distribution of llama-cpp-python {} ",),
    "CHANGELOG.md": ("the llama.cpp of llama-cpp-python {} through",),
}


def new_texts(old: Pin, new: Pin, patches: dict[str, str]) -> dict[str, str]:
    """Every file of the checkout that changes, with its new text."""
    before, after = version_of(old), version_of(new)
    texts = {f"native/patches/{name}": text for name, text in patches.items()}
    texts[PIN] = _replaced(
        PIN,
        f"{old.requirement} --hash=sha256:{old.sha256}",
        f"{new.requirement} --hash=sha256:{new.sha256}",
    )
    for path, forms in PLACES.items():
        for form in forms:
            texts[path] = _replaced(path, form.format(before), form.format(after), texts.get(path))
    return {path: text for path, text in texts.items() if text != _read(ROOT / path)}


def version_of(pin: Pin) -> str:
    return pin.requirement.partition("==")[2]


def _read(file: Path) -> str:
    return file.read_bytes().decode() if file.is_file() else ""


def _replaced(path: str, old: str, new: str, text: str | None = None) -> str:
    text = _read(ROOT / path) if text is None else text
    if text.count(old) != 1:
        raise UpgradeError(
            f"{path}: expected {old!r} once, found it {text.count(old)} times. Mend the file, or "
            "PLACES in native/moving/checkout.py if the release is named in another way now."
        )
    return text.replace(old, new)


def write_all(root: Path, texts: dict[str, str]) -> None:
    """Writes files below `root`: all of them, or none if anything goes wrong."""
    kept = {path: (root / path).read_bytes() for path in texts}
    partial = {path: (root / path).with_name(f".{Path(path).name}.partial") for path in texts}
    try:
        for path, text in texts.items():
            partial[path].write_bytes(text.encode())
            shutil.copymode(root / path, partial[path])
        for path in texts:
            partial[path].replace(root / path)
    except BaseException:
        for path, data in kept.items():
            if (root / path).read_bytes() != data:
                partial[path].write_bytes(data)
                partial[path].replace(root / path)
        raise
    finally:
        for file in partial.values():
            file.unlink(missing_ok=True)


def copy(work: Path, texts: dict[str, str]) -> Path:
    """WORK/checkout: what CMake needs of this checkout, and every file that the move changes."""
    checkout = work / "checkout"
    shutil.rmtree(checkout, ignore_errors=True)
    shutil.copytree(NATIVE, checkout / "native", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "CMakeLists.txt", checkout)
    for path, text in texts.items():
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_bytes(text.encode())
    return checkout
