"""Libraries that tests build: every process of a run asks for them at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.building import build_tool

PROCESSES = 8
PROJECT = """
cmake_minimum_required(VERSION 3.21)
project(one NONE)
add_custom_command(OUTPUT out.txt COMMAND ${CMAKE_COMMAND} -E touch out.txt)
add_custom_target(one DEPENDS out.txt)
"""


@pytest.mark.skipif(build_tool("cmake") is None, reason="CMake is not installed")
def test_processes_that_build_one_folder_at_the_same_time_all_find_it_built(tmp_path: Path) -> None:
    """CMake and Ninja rewrite their own files in it, and fail if others do so meanwhile."""
    (tmp_path / "CMakeLists.txt").write_text(PROJECT, encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from tests.support.building import cmake_build\n"
        "folder = Path(sys.argv[1])\n"
        "for _ in range(3): cmake_build(folder, folder / 'build', 'one')\n"
        "assert (folder / 'build' / 'out.txt').is_file()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(PROCESSES)
    ]
    errors = [each.communicate()[1] for each in running]
    assert not any(each.returncode for each in running), "\n".join(errors)
