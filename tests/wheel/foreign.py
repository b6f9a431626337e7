"""An environment for ARM on another processor: Debian's Python for it in a folder, and qemu-user.

Debian's or Ubuntu's packages come from where apt has them, into the folder alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from . import BUILD

ROOT: Final = BUILD / "wheel-aarch64-root"
PACKAGES: Final = ("python3", "libstdc++6", "libgomp1")
GLIBC: Final = range(17, 41)  # the C libraries, 2.17 and so on, whose wheels are tried


def emulator() -> str:
    found = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if found is None:
        sys.exit(
            "no qemu-aarch64, which runs ARM's programs (Debian, Ubuntu: apt install qemu-user)"
        )
    return found


def install_there(wheel: Path) -> None:
    """A Python in ROOT with the wheel, and what it needs, for ARM."""
    python = ROOT / "usr" / "bin" / "python3"
    if not python.exists():
        _unpack_python()
    site = ROOT / "usr" / "lib" / "python3" / "dist-packages"
    shutil.rmtree(site, ignore_errors=True)
    code = "import sys; print('{}.{}'.format(*sys.version_info))"
    version = subprocess.run(
        [emulator(), "-L", ROOT, python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in GLIBC]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run(
        [*pip, "--only-binary=:all:", f"--python-version={version}", "--implementation=cp",
         *platforms, "--platform=manylinux2014_aarch64", "--target", site, wheel],
        check=True,
    )  # fmt: skip


def _unpack_python() -> None:
    apt = ROOT.with_suffix(".apt")
    shutil.rmtree(ROOT, ignore_errors=True)
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "1",
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
    }
    get = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*get, "update"], check=True)
    subprocess.run([*get, "--yes", "--download-only", "install", *PACKAGES], check=True)
    for package in sorted((apt / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, ROOT], check=True)
