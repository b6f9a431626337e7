"""`python native/upstream-prs/amx-tile-config/check.py [TREE]`: which bytes of AMX's configuration
reach memory before the processor reads it, as this machine's compiler makes of ggml's function.

No AMX is needed: in the assembly the instruction that reads them is replaced by copies.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[2] / "build" / "upstream" / "pristine"
FILE = "ggml/src/ggml-cpu/amx/mmq.cpp"

# the rest of a program around the two pieces of ggml's
BEFORE = "#include <cstdint>\n#include <immintrin.h>\n"
BEHIND = """
__attribute__((noinline)) void configure() { ggml_tile_config_init(); }
"""
MAIN = """
#include <cstdio>
#include <cstring>
extern unsigned char seen[64];
unsigned char seen[64];
void configure();
__attribute__((noinline)) void spoil() {
    volatile unsigned char stack[4096];
    for (auto & each : stack) { each = 0xaa; }
}
int main() {
    spoil();
    configure();
    for (unsigned char each : seen) { std::printf("%d ", each); }
}
"""
# the palette, what ends each row, how many rows
WANTED = [1, *[0] * 15]
WANTED += [byte for n in (64, 64, 32, 32, 64, 64, 64, 64, *[0] * 8) for byte in (n, 0)]
WANTED += [8, 8, 16, 16, 16, 16, 16, 16, *[0] * 8]


def found(source: str, compiler: str) -> list[int]:
    """The 64 bytes that are read, of ggml's file as `source`."""
    config = re.search(r"^struct tile_config_t\{.*?^\};", source, re.DOTALL | re.MULTILINE)
    function = re.search(
        r"^inline void ggml_tile_config_init.*?^}", source, re.DOTALL | re.MULTILINE
    )
    if config is None or function is None:
        raise SystemExit(f"{FILE}: has no tile_config_t or ggml_tile_config_init() any more")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "a.cpp").write_text(
            f"{BEFORE}{config[0]}\n{function[0]}\n{BEHIND}", encoding="utf-8"
        )
        (folder / "main.cpp").write_text(MAIN, encoding="utf-8")
        options = ["-O3", "-std=c++17", "-mamx-tile", "-fno-pic", "-S", "-o", folder / "a.s"]
        subprocess.run([compiler, *options, folder / "a.cpp"], check=True)
        text = (folder / "a.s").read_text(encoding="utf-8")
        copied, n = re.subn(r"\tldtilecfg\t(-?\d*)\((%r\w+)\)", _copies, text)
        if n != 1:
            raise SystemExit(f"{compiler}: made {n} ldtilecfg of it, expected one")
        (folder / "a.s").write_text(copied, encoding="utf-8")
        files = [folder / "a.s", folder / "main.cpp"]
        subprocess.run([compiler, "-no-pie", "-o", folder / "a", *files], check=True)
        run = subprocess.run([folder / "a"], check=True, capture_output=True, encoding="utf-8")
    return [int(each) for each in run.stdout.split()]


def _copies(instruction: re.Match[str]) -> str:
    first, register = int(instruction[1] or 0), instruction[2]
    return "".join(
        f"\tmovups\t{first + at}({register}), %xmm0\n\tmovups\t%xmm0, seen+{at}(%rip)\n"
        for at in range(0, 64, 16)
    )


def patched(source: str) -> str:
    """The file with our patch."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, FILE)
        file.parent.mkdir(parents=True)
        file.write_text(source, encoding="utf-8")
        patch = ["git", "apply", str(HERE / "amx-tile-config.patch")]
        # or git would look for a repository around it, and skip the file
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(Path(temporary).parent)}
        subprocess.run(patch, cwd=temporary, env=environment, check=True)
        return file.read_text(encoding="utf-8")


def main(arguments: list[str]) -> int:
    tree = Path(arguments[0]) if arguments else TREE
    if not (tree / FILE).is_file():
        raise SystemExit(
            f"{tree / FILE}: there is no such file; give llama.cpp's sources (here `python "
            "native/fetch_upstream.py --no-patch --dest build/upstream` fetches them)"
        )
    compiler = os.environ.get("CXX") or "g++"
    if not shutil.which(compiler):
        raise SystemExit(f"{compiler}: there is no such compiler; name GCC's or Clang's in CXX")
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, encoding="utf-8"
    )
    print(version.stdout.splitlines()[0])
    source = (tree / FILE).read_text(encoding="utf-8")
    for name, text in (("without the patch", source), ("with the patch", patched(source))):
        wrong = sum(a != b for a, b in zip(found(text, compiler), WANTED, strict=True))
        print(f"{name}: {wrong} of 64 bytes are not what was written")
    return int(wrong > 0)  # of the last, which is ours


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
