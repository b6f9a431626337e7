"""Runs tests in environments of their own, so that what they try decides nothing about the versions
that this package needs. What one lacks, alora-gguf above all, it has from the one that runs this.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_tests(
    group: str, tests: Sequence[str], *, requirements: bool = False, alone: Sequence[str] = ()
) -> int:
    """Installs a dependency group into build/GROUP and runs `tests` there; with `requirements` this
    package's own pinned ones first, and `alone` without what they require. Returns the status.
    """
    home = ROOT / "build" / group
    if not (home / "pyvenv.cfg").exists():
        venv.create(home, with_pip=True)
    python = str(home / ("Scripts" if sys.platform == "win32" else "bin") / "python")

    def run(*arguments: str) -> int:
        return subprocess.run([python, "-m", *arguments], cwd=ROOT, check=False).returncode

    pip = ("pip", "--disable-pip-version-check", "install", "--quiet")
    failed = (
        run(*pip, "--upgrade", "pip>=25.1")
        or (requirements and run(*pip, "-r", "requirements.txt"))
        or run(*pip, "--group", group)
        or (alone and run(*pip, "--no-deps", *alone))
    )
    if failed:
        return int(failed)
    packages = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
    ours = sysconfig.get_path("purelib")
    link = Path(packages) / "zz_alora_gguf.pth"
    link.write_text(f"import site; site.addsitedir({ours!r})\n", encoding="utf-8")
    return run("pytest", *tests)
