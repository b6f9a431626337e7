"""Installs libraries that use llama_cpp.Llama and runs their examples on ours: `make test-peers`.

The environment, build/peers, is their own, so that they decide nothing about this package's
versions. What it lacks, alora-gguf above all, it has from the environment that runs this.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build" / "peers"
# it pins an older llguidance than this package needs, and works with that
WITHOUT_REQUIREMENTS = ["guidance==0.3.1", "guidance-stitch==0.1.5"]


def main() -> int:
    if not (HOME / "pyvenv.cfg").exists():
        venv.create(HOME, with_pip=True)
    python = str(HOME / ("Scripts" if sys.platform == "win32" else "bin") / "python")

    def run(*arguments: str) -> int:
        return subprocess.run([python, "-m", *arguments], cwd=ROOT, check=False).returncode

    pip = ("pip", "--disable-pip-version-check", "install", "--quiet")
    failed = (
        run(*pip, "--upgrade", "pip>=25.1")
        or run(*pip, "-r", "requirements.txt")
        or run(*pip, "--group", "peers")
        or run(*pip, "--no-deps", *WITHOUT_REQUIREMENTS)
    )
    if failed:
        return failed
    packages = sysconfig.get_path("purelib", vars={"base": str(HOME), "platbase": str(HOME)})
    ours = sysconfig.get_path("purelib")
    link = Path(packages) / "zz_alora_gguf.pth"
    link.write_text(f"import site; site.addsitedir({ours!r})\n", encoding="utf-8")
    return run("pytest", "tests/peers")


if __name__ == "__main__":
    sys.exit(main())
