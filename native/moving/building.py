"""Builds the libraries of a move in a folder of their own and runs the tests with them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fetch_upstream

from .report import ROOT, Report, UpgradeError

SHOWN = 8  # lines of a compiler's in a message


def tool(name: str) -> str:
    """A program of the environment that this runs in, or of PATH."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=beside) or shutil.which(name)
    if found is None:
        raise UpgradeError(f"{name} was not found: python -m pip install -r requirements-build.txt")
    return found


def run(command: list[str], log: Path, **env: str) -> tuple[int, str]:
    """The exit status and the output of a command, which `log` has too."""
    with log.open("wb") as file:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return done.returncode, log.read_text(encoding="utf-8", errors="replace")


def build(work: Path, checkout: Path, sdist: Path, jobs: str, report: Report) -> Path:
    """Builds the libraries and the native tests in WORK/build; returns that folder."""
    with report.step("build") as step:
        folder = work / "build"
        cmake = tool("cmake")
        configure = [cmake, "-S", str(checkout), "-B", str(folder), "-G", "Ninja"]
        configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
        configure += ["-DALORA_BUILD_TESTS=ON", "-DALORA_WERROR=ON"]  # CI has both
        configure += [f"-DALORA_UPSTREAM_DIR={work / 'upstream'}"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}"]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        compile_all = [cmake, "--build", str(folder), "--parallel", *([jobs] if jobs else [])]
        for name, command in (("configure", configure), ("build", compile_all)):
            log = work / f"{name}.log"
            env = {fetch_upstream.SDIST_VARIABLE: str(sdist)}
            code, output = run(command, log, **env)
            if code != 0:
                errors = [
                    line
                    for line in output.splitlines()
                    if re.search(r"\berror\b", line, re.IGNORECASE)
                ]
                told = errors[:SHOWN] or output.splitlines()[-SHOWN:]
                raise UpgradeError(
                    f"CMake's {name} failed; all of it is in {log}:\n  " + "\n  ".join(told)
                )
        step.said = f"in {folder}"
    return folder


def test_native(work: Path, folder: Path, report: Report) -> None:
    with report.step("native") as step:
        log = work / "native.log"
        command = [tool("ctest"), "--test-dir", str(folder), "--output-on-failure"]
        code, output = run([*command, "--no-tests=error"], log)
        tests = re.findall(r"Test +#\d+: (\S+) [.* ]*(\w+)", output)
        failed = [name for name, result in tests if result != "Passed"]
        step.said = f"{len(tests) - len(failed)} of {len(tests)} programs passed"
        if code != 0:
            checks = re.findall(r"^\S*?/native/(tests/\S+: CHECK.*)", output, re.MULTILINE)
            raise UpgradeError(
                f"native tests failed: {', '.join(failed) or 'ctest itself'}; {log} has their "
                "output.\n"
                + "".join(f"  {check}\n" for check in checks[:SHOWN])
                + "Look first at hunks with fuzz. test_upstream_ggml and test_upstream_llama say "
                "what we rely on ('What we rely on upstream for' in native/README.md): read the "
                "code that relies on it anew before you change a check."
            )


def test_parity(work: Path, folder: Path, texts: dict[str, str], jobs: str, report: Report) -> None:
    """tests/parity with the libraries just built, and the new llama_cpp."""
    with report.step("parity") as step:
        python = work / "python"
        pristine = work / "upstream" / "pristine"
        shutil.rmtree(python, ignore_errors=True)
        python.mkdir()
        binding = pristine / fetch_upstream.BINDING_FOLDER / "llama_cpp"
        (python / "llama_cpp").symlink_to(binding)
        _lay_package(python, folder / "bin", texts)
        log = work / "parity.log"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-n", jobs or "logical", "--dist", "loadfile", "-m", "not stock"]
        command += ["-o", f"pythonpath={python} {ROOT}", "tests/parity"]
        code, output = run(
            command,
            log,
            PYTHONPATH=f"{python}{os.pathsep}{ROOT}",
            OMP_NUM_THREADS="1",
            PYTHONSAFEPATH="1",  # the working directory has a package of the same name
            ALORA_LIB_DIR=str(folder / "bin"),
            ALORA_UPSTREAM_TREE=str(pristine),
        )
        last = (output.strip().splitlines() or [""])[-1].strip("= ")
        step.said = last
        if code != 0:
            raise UpgradeError(f"tests/parity failed ({last}); all of it is in {log}")


# An editable installation's finder would find the checkout's own package first.
SITE = """\
import sys

sys.meta_path[:] = [f for f in sys.meta_path if f.__module__.startswith("_frozen_importlib")]
"""


def _lay_package(python: Path, libraries: Path, texts: dict[str, str]) -> None:
    """alora_gguf as a wheel has it, by links, but for the files that the move changes."""
    package = python / "alora_gguf"
    package.mkdir()
    (package / "lib").symlink_to(libraries)
    (python / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    for source, target in (
        (ROOT / "alora_gguf", package),
        (ROOT / "convert", package / "convert"),
        (ROOT / "cli", package / "cli"),
    ):
        for file in sorted(source.rglob("*")):
            path = file.relative_to(ROOT).as_posix()
            if not file.is_file() or "__pycache__" in path:
                continue
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path in texts:
                copy.write_text(texts[path], encoding="utf-8")
            else:
                copy.symlink_to(file)
