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


def installed(
    group: str,
    *,
    requirements: bool = False,
    alone: Sequence[str] = (),
    without: Sequence[str] = (),
) -> tuple[Path, int]:
    """The Python of build/GROUP, where a dependency group is installed, with `requirements` this
    package's own pinned ones first, then `alone` without what they require, and those that it is to
    be `without` removed in the end; and pip's status.
    """
    home = ROOT / "build" / group
    if not (home / "pyvenv.cfg").exists():
        venv.create(home, with_pip=True)
    python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"

    def pip(*arguments: str) -> int:
        command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
        return subprocess.run(command, cwd=ROOT, check=False).returncode

    install = ("install", "--quiet")
    failed = (
        pip(*install, "--upgrade", "pip>=25.1")
        or (requirements and pip(*install, "-r", "requirements.txt"))
        or pip(*install, "--group", group)
        or (alone and pip(*install, "--no-deps", *alone))
        or (without and pip("uninstall", "--quiet", "--yes", *without))
    )
    return python, int(failed or 0)


def run_tests(
    group: str, tests: Sequence[str], *, requirements: bool = False, alone: Sequence[str] = ()
) -> int:
    """Installs as installed() does, and runs `tests` there. Returns the status."""
    python, failed = installed(group, requirements=requirements, alone=alone)
    if failed:
        return failed
    home = python.parents[1]
    packages = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
    ours = sysconfig.get_path("purelib")
    link = Path(packages) / "zz_alora_gguf.pth"
    link.write_text(f"import site; site.addsitedir({ours!r})\n", encoding="utf-8")
    return subprocess.run([python, "-m", "pytest", *tests], cwd=ROOT, check=False).returncode
