"""What a page shows of a terminal, played again: lines after `$ `, and after `> ` in a chat.

`python -m tests.support.transcripts PAGE` plays a page and writes what it has to show now. Of a
program other than a chat it shows the standard output.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pexpect

from .pages import ROOT, Block, blocks
from .smollm2 import smollm2

_PROMPT = "\r\n> "
_REAL = "chat smollm2"  # in the blocks that need the model
_MASKS = (
    (r"\b\d+:\d\d:\d\d\b", "#:##:##"),
    (r" *\d+(\.\d+)? m?s\b", " # ms"),
    (r"\d+%", "#%"),
    (r"\b\d+ threads?\b", "# threads"),
    (r"right on \d+", "right on #"),
    (r"▒ \d+ left|\d+ cells free", "# cells"),
    (r"^ *(\d+) +(\d+) +(\d+) # ms +(\d+) +\d+", r"\1 \2 \3 # ms \4 #"),
    (r"\b\d\.\d{3,}(e-\d+)?\b", "#"),
    (r"\d+(\.\d+)?e-\d+", "#"),
    (r"[ \t]+$", ""),
)


def environment(home: Path) -> dict[str, str]:
    """A terminal of 80 columns in which `alora-gguf` and `python` are the ones that are tested."""
    scripts = str(Path(sys.executable).parent)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "ALORA_"))}
    return {
        **kept,
        "PATH": scripts + os.pathsep + os.environ.get("PATH", ""),
        "TERM": "dumb",
        "NO_COLOR": "1",
        "COLUMNS": "80",
        "ALORA_GGUF_HOME": str(home),
        "PYTHONUNBUFFERED": "1",
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
    }


def one_core() -> None:
    """Small models gain nothing from threads that wait for each other."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def shown_by(block: Block) -> list[tuple[str, str]]:
    """Each command of a block with what is shown after it."""
    found = []
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        lines = part.rstrip("\n").split("\n")
        n = 1
        while lines[n - 1].endswith("\\"):
            n += 1
        found.append(("\n".join(lines[:n]), "\n".join(lines[n:])))
    return found


def play(page: Path, folder: Path, *, real: bool = False) -> Iterator[tuple[Block, str, str, str]]:
    """Plays a page in `folder`, which is the reader's: every command with its block, what the page
    shows and what there is. Programs that begin with `# NAME.py` are written there. Played is what
    needs SmolLM2, if it is to be the `real` model, or else what does not.
    """
    for block in blocks(page):
        if (_REAL in block.text) is not real:
            continue
        name = re.match(r"# (\w+\.py)\n", block.text)
        if block.language == "python" and name:
            (folder / name[1]).write_text(block.text, encoding="utf-8")
        if block.language == "console":
            for command, shown in shown_by(block):
                yield block, command, shown, _play(command, shown, folder)


def _play(command: str, shown: str, folder: Path) -> str:
    typed = re.findall(r"^> (.*)$", shown, re.MULTILINE)
    if typed:
        return _chat(command, typed, folder)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(folder / "store"),
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=one_core,
    )
    if done.returncode != 0:
        return f"{done.stdout}{done.stderr}(status {done.returncode})"
    return done.stdout.strip("\n")


def _chat(command: str, typed: list[str], folder: Path) -> str:
    program, *arguments = shlex.split(command)
    path = shutil.which(program, path=environment(folder)["PATH"]) or program
    child = pexpect.spawn(
        path,
        arguments,
        cwd=str(folder),
        env=environment(folder / "store"),
        dimensions=(40, 80),
        encoding="utf-8",
        timeout=300,
        preexec_fn=one_core,
    )
    shown = ""
    for line in typed:
        child.expect_exact(_PROMPT)
        shown += f"{child.before}\n> {line}\n"
        child.sendline(line)
        child.expect_exact(f"{line}\r\n")
    child.expect_exact([_PROMPT, pexpect.EOF])
    shown += child.before
    child.sendeof()
    child.close()
    lines = (line.rstrip() for line in shown.replace("\r\n", "\n").strip("\n").split("\n"))
    return "\n".join(line for line in lines if "Loading  [" not in line)


def masked(text: str) -> str:
    """Without what differs from one machine to the next: times, and the ends of probabilities."""
    for pattern, mask in _MASKS:
        text = re.sub(pattern, mask, text, flags=re.MULTILINE)
    return text


def agree(shown: str, now: str) -> bool:
    """Whether a page shows what there is; a line of "..." stands for any number of lines."""
    parts = re.split(r"^\.\.\.$\n?", masked(shown), flags=re.MULTILINE)
    return re.fullmatch(".*".join(map(re.escape, parts)), masked(now), re.DOTALL) is not None


def main() -> None:
    page = Path(sys.argv[1]).resolve()
    text = page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        put_files(Path(folder))
        for _, command, shown, now in (
            *play(page, Path(folder)),
            *(play(page, Path(folder), real=True) if smollm2() else ()),
        ):
            if not agree(shown, now):
                end = "" if shown else "\n"
                text = text.replace(f"$ {command}\n{shown}", f"$ {command}\n{now}{end}", 1)
                print(f"$ {command}\n{now}\n")
    page.write_text(text, encoding="utf-8")


def put_files(folder: Path) -> None:
    """What a reader has who stands in the repository."""
    for name in ("examples", "alora_gguf"):
        (folder / name).symlink_to(ROOT / name)


if __name__ == "__main__":
    main()
