"""A trainable adapter on transformers' model of a base, through PEFT, and its directory."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from alora_gguf.convert.base.families import FAMILIES
from alora_gguf.errors import InputError

from .prefixes import Shape
from .records import config_of, weights_file
from .settings import ALL_LINEAR, ATTENTION, TrainSettings

CONTRACT = "io.yaml"
_CONFIG = "adapter_config.json"


class Adapter:
    """A new adapter, PEFT's `model` with the base inside. close() gives the base back."""

    def __init__(
        self, base: Any, architecture: str, settings: TrainSettings, invocation: Sequence[int] = ()
    ) -> None:
        """With an `invocation` PEFT itself finds where it acts, in whole conversations; without,
        it acts on all that it is given.
        """
        torch.manual_seed(settings.seed)
        self._alpha = settings.scale
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.scale,  # type: ignore[arg-type] # PEFT takes any number
            target_modules=targets(base, architecture, settings.targets),
            alora_invocation_tokens=list(invocation) or None,
        )
        with _quiet():
            self.model: Any = get_peft_model(base, config)
        self.model.eval()

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """What is trained, by PEFT's names; copies."""
        found: dict[str, torch.Tensor] = get_peft_model_state_dict(self.model)
        return {name: value.detach().clone().contiguous() for name, value in found.items()}

    @property
    def parameters(self) -> list[Any]:
        """What is trained."""
        return [each for each in self.model.parameters() if each.requires_grad]

    def restore(self, weights: dict[str, torch.Tensor]) -> None:
        """Takes what `weights` gave."""
        set_peft_model_state_dict(self.model, dict(weights))

    def start_from(self, folder: Path) -> None:
        """Takes the weights of an adapter in PEFT's format. Raises InputError for what is none,
        and for one of another base, rank, alpha or other targets.
        """
        fields, file = config_of(folder), weights_file(folder)
        try:
            found = load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{file}: cannot be read ({error}); expected the weights of an adapter in PEFT's "
                "format, as --peft-out writes them"
            ) from error
        own = self.weights
        shapes = {name: tuple(each.shape) for name, each in own.items()}
        for name in sorted({*shapes, *found}):
            there = tuple(found[name].shape) if name in found else "none"
            if there != shapes.get(name, "none"):
                raise InputError(
                    f"{file}: '{name}' is {there}, expected {shapes.get(name, 'none')}; train it "
                    "further on its own base, with its rank (--rank) and targets (--targets)"
                )
        alpha = fields.get("lora_alpha")
        if alpha != self._alpha:
            raise InputError(
                f"{folder / _CONFIG}: lora_alpha is {alpha!r}, expected {self._alpha:g} (--alpha)"
            )
        if not all(bool(each.isfinite().all()) for each in found.values()):
            raise InputError(f"{file}: holds NaN or infinite values; its training has diverged")
        self.restore({name: each.to(own[name].dtype) for name, each in found.items()})

    def save(
        self, folder: Path, weights: dict[str, torch.Tensor], invocation: Sequence[int], base: str
    ) -> None:
        """Writes PEFT's two files; with an invocation, of an activated LoRA."""
        shutil.rmtree(folder, ignore_errors=True)
        with _quiet():
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
        from safetensors.torch import save_file

        save_file(weights, str(folder / "adapter_model.safetensors"), {"format": "pt"})
        (folder / "README.md").unlink(missing_ok=True)
        file = folder / _CONFIG
        fields = json.loads(file.read_text(encoding="utf-8"))
        fields["alora_invocation_tokens"] = list(invocation) or None
        fields["base_model_name_or_path"] = base
        file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def close(self) -> Any:
        """The base, as it was."""
        with _quiet():
            return self.model.unload()


def shapes_of(base: Any) -> tuple[Shape, ...] | None:
    """The layers' heads of keys and values; None for a base with layers that keep something else
    of what they have read, as state spaces do.
    """
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    if not kinds <= {"full_attention", "sliding_attention", "attention"}:
        return None
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return tuple(Shape(heads, width, width) for _ in range(config.num_hidden_layers))


def targets(base: Any, architecture: str, wanted: str | Sequence[str]) -> list[str]:
    """The names of a base's linear modules that are `wanted`. Raises InputError for one that it has
    not.
    """
    modules = FAMILIES[architecture].modules
    found: dict[str, tuple[str, ...]] = {}  # a module's path in its block -> tensors
    for name, module in base.named_modules():
        linear = isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
        if not linear:
            continue
        for path, readings in modules.items():
            if name.endswith("." + path):
                found[path] = tuple(tensor for reading in readings for tensor in reading)
    if isinstance(wanted, str) and wanted in (ATTENTION, ALL_LINEAR):
        chosen = [
            path
            for path, tensors in found.items()
            if wanted == ALL_LINEAR or any(each.startswith("attn_") for each in tensors)
        ]
        if not chosen:
            raise InputError(f"the base has no linear layers in its {wanted}; name other targets")
        return chosen
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    chosen = []
    for name in names:
        here = [path for path, tensors in found.items() if name in (path, *tensors)]
        if not here:
            known = sorted({each for tensors in found.values() for each in tensors})
            raise InputError(
                f"targets: the base has no {name!r}; it has {', '.join(known)}, and "
                f"'{ATTENTION}' and '{ALL_LINEAR}' name several"
            )
        chosen += here
    return list(dict.fromkeys(chosen))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PEFT's warnings about what is meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
