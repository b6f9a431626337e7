"""What a conversion came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ConversionReport:
    """The outcome of convert_adapter().

    out, written  the file, and whether it was written: a dry run writes nothing
    kind          "alora", "lora" or "classifier"
    invocation    token ids that switch an aLoRA on, empty for a LoRA; and their text, if known
    targets       how many weights of each kind are changed, such as {"attn_q": 32}
    ranks         the ranks that occur, ascending
    alpha         adapter.lora.alpha; every other scale is folded into B
    folded        for how many weights B was rescaled (rsLoRA, alpha_pattern)
    nbytes        the size of the file
    source_sha256 of the adapter's weights
    warnings      what the user should know, one sentence each
    contract      the io.yaml that is in it, None if it has none; a classifier's may be made of it
    labels        what a classifier tells apart
    """

    out: Path
    written: bool
    name: str
    kind: str
    architecture: str
    invocation: tuple[int, ...]
    invocation_text: str | None
    targets: dict[str, int]
    ranks: tuple[int, ...]
    alpha: float
    folded: int
    outtype: str
    nbytes: int
    seconds: float
    source_sha256: str
    warnings: tuple[str, ...]
    contract: Path | None = None
    labels: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        contract = None if self.contract is None else str(self.contract)
        return {**asdict(self), "out": str(self.out), "contract": contract}
