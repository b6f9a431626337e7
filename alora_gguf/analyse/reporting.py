"""Findings in SARIF 2.1.0, which code hosts and CI show beside a change (OASIS standard)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from alora_gguf._calls import checked
from alora_gguf.files import check_target, write_whole

from .findings import RULES
from .records import Analysis

_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"


@checked
def sarif(analysis: Analysis) -> dict[str, Any]:
    """The findings about all adapters as a SARIF 2.1.0 log of one run, as JSON can hold it."""
    from alora_gguf import __version__

    rules = [
        {
            "id": rule,
            "shortDescription": {"text": about.summary},
            "defaultConfiguration": {"level": about.level},
        }
        for rule, about in RULES.items()
    ]
    numbers = {rule: i for i, rule in enumerate(RULES)}
    results = []
    for adapter in analysis.adapters:
        place = {"artifactLocation": {"uri": quote(adapter.path.as_posix(), safe="/:")}}
        for finding in adapter.findings:
            location: dict[str, Any] = {"physicalLocation": place}
            if finding.targets:
                location["logicalLocations"] = [
                    {"fullyQualifiedName": target} for target in finding.targets
                ]
            results.append(
                {
                    "ruleId": finding.rule,
                    "ruleIndex": numbers[finding.rule],
                    "level": finding.level,
                    "message": {"text": finding.message},
                    "locations": [location],
                }
            )
    driver = {"name": "alora-gguf analyse", "version": __version__, "rules": rules}
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }


@checked
def check_sarif(path: str | os.PathLike[str]) -> None:
    """Raises what write_sarif() would, as far as that can be told before there is anything."""
    check_target(Path(path), what="SARIF")


@checked
def write_sarif(analysis: Analysis, path: str | os.PathLike[str]) -> None:
    """Writes the findings in SARIF 2.1.0 to a file, which is replaced if it exists. Raises
    InputError, and FileFormatError if the file system refuses.
    """
    with write_whole(Path(path), what="SARIF") as file:
        file.write(json.dumps(sarif(analysis), indent=2).encode() + b"\n")
