"""PEFT as the judge of an adapter: the same tokens through torch, transformers and PEFT.

Needs the extra `train`; nothing of it is imported before it is used.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from alora_gguf.engine.llama_context import Logits
from alora_gguf.errors import AdapterMismatchError, AloraError, InputError, ModelError
from alora_gguf.files import read_json

from .probe import Doubles, relative_error
from .records import AdapterFacts, Allowed, BaseFacts, Distance, PeftComparison, Text

_NEEDED: Final = ("torch", "transformers", "peft")
_CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = "adapter_model.safetensors"
_INVOCATION: Final = "alora_invocation_tokens"

# Bits per weight of the coarser side, and the fields of Allowed. For 32 and 16 bits `typical` is
# what the project promises and tests/parity checks. The rest was measured on the demo model's ten
# adapters with three texts each: typical differences of at most 1.8e-3 (16 bits), 0.05 (8) and 0.22
# (4), cosines of at least 0.9999, 0.97 and 0.75. An alpha 1.5 times too large gave at least 0.12
# and at most 0.91 (16 and 8 bits), another adapter 0.47 and 0.69 (any).
_ALLOWED: Final[tuple[tuple[float, float, float | None, float], ...]] = (
    (32.0, 5e-3, 5e-3, 0.99),
    (16.0, 5e-3, 5e-2, 0.99),
    (8.0, 8e-2, None, 0.94),
    (6.0, 0.15, None, 0.85),
    (4.0, 0.35, None, 0.65),
    (0.0, 0.6, None, 0.5),
)


def allowed_for(base: BaseFacts, adapter: AdapterFacts) -> Allowed:
    """How far logits may be off PEFT's, which has the original weights."""
    bits, kind = base.bits_per_weight, f"a base of type {base.type}"
    if adapter.bits_per_weight < bits:
        bits, kind = adapter.bits_per_weight, f"an adapter of type {adapter.type}"
    return Allowed(kind, *next(row[1:] for row in _ALLOWED if bits >= row[0]))


@dataclass(frozen=True, slots=True)
class PeftReference:
    """A PEFT directory and the transformers directory of its base, both known to be there."""

    adapter: Path
    base: Path

    @classmethod
    def find(
        cls, adapter: str | os.PathLike[str], base: str | os.PathLike[str] | None
    ) -> PeftReference:
        """With `base` None, the one that the adapter's configuration names.

        Raises InputError if something is not installed or not there, FileFormatError.
        """
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(
                f"comparing with PEFT needs {', '.join(_NEEDED)}, but {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not installed: pip install "
                "'alora-gguf[train]'"
            )
        folder = _folder(adapter, "the PEFT directory that the adapter was converted from")
        for name in (_CONFIG, _WEIGHTS):
            _require(folder, name, "a PEFT adapter in safetensors")
        config = read_json(folder / _CONFIG)
        if base is None:
            named = config.get("base_model_name_or_path")
            if not isinstance(named, str) or not Path(named).is_dir():
                raise InputError(
                    f"{folder / _CONFIG}: base_model_name_or_path is {named!r}, which is not a "
                    "directory here; name the transformers directory of the base with "
                    "--hf-base (hf_base=)"
                )
            base = named
        base = _folder(base, "the transformers directory of the base")
        _require(base, "config.json", "a transformers directory")
        return cls(folder, base)

    def compare(
        self, base: BaseFacts, adapter: AdapterFacts, text: Text, plain: Logits, adapted: Logits
    ) -> PeftComparison:
        """Beside our logits [n_rows, n_vocab] of the last tokens of `text`, without the adapter and
        with it.

        Raises ModelError if transformers cannot use the base, AdapterMismatchError if PEFT cannot
        use the adapter or has another invocation.
        """
        theirs_plain, theirs = self._logits(adapter, text.tokens, text.n_rows)
        # either side may have rows for tokens that do not exist, up to a round number
        n = min(plain.shape[1], theirs.shape[1])
        plain, adapted = plain[:, :n], adapted[:, :n]
        theirs_plain, theirs = theirs_plain[:, :n], theirs[:, :n]
        effect = (theirs.astype(np.float64) - theirs_plain)[-text.n_adapted :]
        ours_effect = (adapted.astype(np.float64) - plain)[-text.n_adapted :]
        return PeftComparison(
            adapter=self.adapter,
            base=self.base,
            n_rows=text.n_rows,
            without=distance(plain, theirs_plain),
            with_adapter=distance(adapted, theirs),
            allowed=allowed_for(base, adapter),
            effect=_typical(effect) / float(np.abs(theirs_plain).max()),
            effect_cosine=_cosine(ours_effect, effect),
        )

    def _logits(
        self, file: AdapterFacts, tokens: Sequence[int], n_rows: int
    ) -> tuple[Logits, Logits]:
        """PEFT's logits of the last rows: the base's, and with the adapter."""
        import torch
        import transformers

        with _quiet(), torch.no_grad():
            auto: Any = transformers.AutoModelForCausalLM
            with _failing(ModelError, f"{self.base}: transformers cannot load it"):
                base = auto.from_pretrained(
                    self.base, dtype=torch.float32, local_files_only=True, use_safetensors=True
                ).eval()
            n_known = base.get_input_embeddings().num_embeddings
            if max(tokens) >= n_known:
                raise ModelError(
                    f"{self.base}: has {n_known} tokens, but token {max(tokens)} is in the text; "
                    "it is not the GGUF's model"
                )

            def rows(model: Any) -> Logits:
                logits = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits
                return np.asarray(logits[0, -n_rows:].float().numpy(), np.float32)

            return rows(base), rows(self._load_adapter(base, file))

    def _load_adapter(self, base: Any, file: AdapterFacts) -> Any:
        from peft import PeftConfig, PeftModel

        with _failing(AdapterMismatchError, f"{self.adapter}: PEFT cannot put it on {self.base}"):
            config = PeftConfig.from_pretrained(str(self.adapter))
            known = getattr(config, _INVOCATION, None)
            if known and tuple(known) != file.invocation:
                raise AdapterMismatchError(
                    f"{self.adapter / _CONFIG}: {_INVOCATION} is {list(known)}, but "
                    f"{list(file.invocation)} in {file.path}, which was converted from another one"
                )
            if file.invocation:  # older files know it only as text
                config.alora_invocation_tokens = list(file.invocation)
            return PeftModel.from_pretrained(base, str(self.adapter), config=config).eval()


@contextmanager
def _failing(kind: type[AloraError], what: str) -> Iterator[None]:
    """Around what may raise anything, for what is in a directory."""
    try:
        yield
    except AloraError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        said = f": {lines[0]}" if lines else ""
        raise kind(f"{what}: {type(error).__name__}{said}") from error


def distance(ours: Logits, theirs: Logits) -> Distance:
    """Of rows of logits [n_rows, n_vocab]; NaN where something is not finite."""
    difference = ours.astype(np.float64) - theirs
    largest = float(np.abs(theirs).max())
    return Distance(relative_error(ours, theirs), _typical(difference) / largest)


def _typical(rows: Logits | Doubles) -> float:
    """The median of each row's largest absolute value."""
    return float(np.median(np.abs(rows).max(axis=-1)))


def _cosine(a: Doubles, b: Doubles) -> float:
    """Between two arrays as a whole; 1 if both are zero, 0 if one is."""
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if 0.0 in norms:
        return float(norms[0] == norms[1])
    return float(np.sum(a / norms[0] * (b / norms[1])))


def _folder(path: str | os.PathLike[str], what: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        found = "is not a directory" if folder.exists() else "there is no such directory"
        raise InputError(f"{folder}: {found}, expected {what}")
    return folder


def _require(folder: Path, name: str, what: str) -> None:
    if not (folder / name).is_file():
        raise InputError(f"{folder}: has no {name}, so it is not {what}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers and PEFT have to say on the way."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
