"""How a chat begins: what is imported for it, and on which systems that is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .test_piped import ANSWER, QUESTION, start

ROOT = Path(__file__).parents[3]


def loaded(code: str, *names: str) -> tuple[str, list[str]]:
    """What a program prints, and which of the modules it has loaded."""
    tell = f"import sys; print([m for m in {names!r} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{tell}"], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    *lines, last = run.stdout.splitlines()
    return "\n".join(lines), eval(last)  # noqa: S307 (our own list)


def test_the_help_loads_neither_numpy_nor_the_library() -> None:
    code = "from alora_gguf.cli import run; run(['chat', '--help'])"
    out, found = loaded(code, "numpy", "llama_cpp", "rich", "prompt_toolkit", "jinja2")
    assert out.startswith("Usage: alora-gguf chat [OPTIONS] [BASE]")
    assert found == []


@pytest.mark.slow
def test_a_reply_through_a_pipe_needs_no_terminal_libraries(home: Path) -> None:
    """They would take a tenth of the time to its first token."""
    code = f"from alora_gguf.cli import run; run(['chat', '--threads', '1', '-p', {QUESTION!r}])"
    out, found = loaded(code, "rich", "prompt_toolkit", "pygments", "markdown_it", "termios")
    assert out == ANSWER
    assert found == []


def test_every_module_can_be_imported_on_windows() -> None:
    modules = [path.stem for path in (ROOT / "cli" / "chat").glob("*.py")]
    assert "loop" in modules
    code = (
        "import sys\n"
        "for name in ('termios', 'tty', 'pty', 'pwd', 'resource', 'readline'):\n"
        "    sys.modules[name] = None\n"
        "from importlib import import_module\n"
        f"for name in {modules!r}:\n"
        "    import_module('alora_gguf.cli.chat.' + name)\n"
    )
    assert loaded(code, "prompt_toolkit") == ("", [])


@pytest.mark.slow
def test_no_input_at_all(home: Path) -> None:
    """As when a service starts it."""
    run = start("-p", "-", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    out, err = run.communicate(timeout=60)
    said = "Error: there is nothing to say in an empty message\n"
    assert (run.returncode, out.decode(), err.decode()) == (1, "", said)
