"""mellea's handling of intrinsics, as the peer that ours is compared with.

Its wheel is fetched on first use and never installed; only its formatters are unpacked. They run in
a process of their own, because the packages above them import far more than is there: run as a
program, this file is that process, and answers each line of JSON with another.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import types
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VERSION = "0.8.0"
SHA256 = "d8fc50a4563e1bbeb4bf7a2561b52310055e75aa47f2fbb0b250c150d94d0357"
_FORMATTERS = "mellea/formatters/granite"


@functools.cache
def mellea_folder() -> Path:
    """Where its formatters lie; downloads the wheel through the user's index if it is not there."""
    folder = ROOT / "build" / "mellea"
    stamp = folder / "sha256.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == SHA256:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        wheel = _download(Path(temporary))
        shutil.rmtree(folder / "mellea", ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            wanted = (f"{_FORMATTERS}/base/", f"{_FORMATTERS}/intrinsics/")
            for name in archive.namelist():
                if name.startswith(wanted) or "/licenses/" in name:
                    archive.extract(name, folder)
    stamp.write_text(SHA256, encoding="utf-8")
    return folder


def _download(folder: Path) -> Path:
    pin = folder / "pin.txt"
    pin.write_text(f"mellea=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    # the formatters need nothing of Python 3.11, which mellea as a whole asks for
    command += ["--require-hashes", "--ignore-requires-python", "--disable-pip-version-check"]
    command += ["--dest", str(folder), "-r", str(pin)]
    # a constraints file without hashes would contradict --require-hashes
    kept_out = ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")
    env = {name: value for name, value in os.environ.items() if name not in kept_out}
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(f"pip could not download mellea {VERSION}:\n{done.stdout}{done.stderr}")
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != SHA256:
        raise RuntimeError(f"the index gave another file than the pinned mellea {VERSION}")
    return wheels[0]


class MelleaError(Exception):
    """Mellea raised an exception; `kind` is its type's name."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Mellea:
    """A running peer; close it when done."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, str(mellea_folder())]
        env = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": ""}
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=60)

    def ask(
        self,
        config: Path,
        request: dict[str, Any],
        arguments: dict[str, Any],
        content: str | None = None,
        tokens: list[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Its {"request": ...}, and with `content` its {"value": ...} for that reply.

        `tokens` are as in OpenAI's API. Raises MelleaError where mellea raises anything.
        """
        question = {
            "config": str(config),
            "request": request,
            "arguments": arguments,
            "content": content,
            "tokens": tokens,
        }
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(question) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError("the process that runs mellea has ended; see its output above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MelleaError(*answer["error"])
        return answer


# ---- the process that runs mellea ----------------------------------------------------------------


def _answer(modules: tuple[Any, Any], question: dict[str, Any]) -> dict[str, Any]:
    inputs, outputs = modules
    rewriter = inputs.IntrinsicsRewriter(config_file=question["config"])
    request = rewriter.transform(question["request"], **question["arguments"])
    answer: dict[str, Any] = {"request": request.model_dump()}
    if question["content"] is None:
        return answer
    tokens = question["tokens"]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": question["content"]},
        "logprobs": None if tokens is None else {"content": tokens},
    }
    processor = outputs.IntrinsicsResultProcessor(config_file=question["config"])
    result = processor.transform({"choices": [choice]}, request)
    answer["value"] = json.loads(result.choices[0].message.content)
    return answer


def _main(folder: Path) -> None:
    import importlib

    for name in ("mellea", "mellea.formatters", "mellea.formatters.granite"):
        package = types.ModuleType(name)  # in place of one that imports everything
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    intrinsics = "mellea.formatters.granite.intrinsics"
    modules = (
        importlib.import_module(f"{intrinsics}.input"),
        importlib.import_module(f"{intrinsics}.output"),
    )
    for line in sys.stdin:
        try:
            answer = _answer(modules, json.loads(line))
        except Exception as error:  # the test decides what it thinks of it
            answer = {"error": [type(error).__name__, str(error)]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
