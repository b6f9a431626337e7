"""python -m tests.wheel [WHEEL]: installs a wheel, without it the newest that was built, where no
compiler is, and tests it there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from . import BUILD, install, is_foreign

WHEELS = BUILD / "wheel"
WITHIN = 30  # seconds


def main(arguments: list[str]) -> int:
    found = sorted(WHEELS.glob("*/alora_gguf-*.whl"), key=lambda path: path.stat().st_mtime)
    wheel = Path(arguments[0]).resolve() if arguments else found[-1] if found else WHEELS
    if not wheel.is_file():
        print(f"{wheel}: no wheel of alora-gguf is there; `make wheel` builds one", file=sys.stderr)
        return 2
    began = time.monotonic()
    try:
        install(wheel)
    except subprocess.CalledProcessError:
        print(f"{wheel}: could not be installed; what failed is above", file=sys.stderr)
        return 1
    took = time.monotonic() - began
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, installed in {took:.0f} s")
    if took > WITHIN and not is_foreign(wheel.name):
        print(f"expected at most {WITHIN} s", file=sys.stderr)
        return 1
    env = {**os.environ, "ALORA_TEST_WHEEL": str(wheel)}
    tests = [sys.executable, "-m", "pytest", str(Path(__file__).with_name("test_wheel.py"))]
    return subprocess.run(tests, env=env, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
