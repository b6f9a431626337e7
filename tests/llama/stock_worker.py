"""Runs the cases on the stock class with the unpatched library, in a process of its own.

python stock_worker.py OUT.json demo=PATH tiny=PATH ... with LLAMA_CPP_LIB_PATH set.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.llama import cases_chat, cases_other  # noqa: F401 (their cases)
from tests.llama.cases import CASES, run_case


def main(out: str, *models: str) -> None:
    from llama_cpp import Llama  # not where the tests import the cases

    warnings.simplefilter("ignore")
    paths = {name: Path(path) for name, path in (model.split("=", 1) for model in models)}

    def result(name: str) -> Any:
        try:
            return run_case(name, paths, Llama)
        except Exception as error:  # one case's trouble is not that of the others
            return {"failed": f"{type(error).__name__}: {error}"}

    results = {name: result(name) for name in CASES}
    Path(out).write_text(json.dumps(results, default=float), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
