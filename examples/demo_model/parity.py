"""`python -m examples.demo_model.parity`: the same verdicts from PEFT and from our runtime?

PEFT reads the trained files and computes in F32; the runtime runs the base as F16 with the shipped
aLoRA files, as anyone would open them. Both answer greedily. Writes parity.json and fails below
99.5 % of equal answers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alora_gguf import AloraError, Model, __version__
from alora_gguf.errors import InputError
from alora_gguf.threads import default_threads

from .chat import INTRINSICS, role_marker
from .runtime import EXAMPLE, ROOT, Files, invocations, open_model

if TYPE_CHECKING:
    from .evaluate import Data

RESULT: Final = EXAMPLE / "parity.json"
FLOOR: Final = 0.995
BASE: Final = "F16"


@dataclass(frozen=True)
class Difference:
    """Two unlike answers about one conversation.

    `token` is the first generated token that differs, counted from 0, and `margin` how far PEFT's
    choice lies above ours there, in PEFT's logits: about 0 where the two are as good as equal.
    Both are -1 and 0 if the prompts were already tokenized differently.
    """

    intrinsic: str
    prompt: str
    peft: str
    ours: str
    token: int
    margin: float


class Peft:
    """The trained base with its aLoRAs, in PEFT, on the CPU."""

    def __init__(self, base: Path, adapters: dict[str, Path], n_threads: int) -> None:
        import torch
        import transformers
        from peft import PeftModel

        from . import tokenizer

        torch.set_num_threads(n_threads)
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model: Any = None
        for name, directory in adapters.items():
            if model is None:
                trained = transformers.AutoModelForCausalLM.from_pretrained(
                    base, dtype=torch.float32
                )
                model = PeftModel.from_pretrained(trained, str(directory), adapter_name=name)
            else:
                model.load_adapter(str(directory), name)
            if not model.peft_config[name].alora_invocation_tokens:
                raise InputError(f"{directory}: is a plain LoRA, expected an aLoRA")
        self._model = model.eval()
        self._tokenizer = tokenizer.load(base)
        self._end = int(trained.config.eos_token_id)

    def encode(self, text: str) -> list[int]:
        """Token ids, control tokens in the text recognized."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without control tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def answer(self, name: str, prompt: Sequence[int], max_tokens: int) -> tuple[list[int], Any]:
        """The likeliest next tokens, one after another, the end token included if it came, and the
        logits [n_tokens, n_vocab] they were chosen by.
        """
        import torch

        self._model.set_adapter(name)
        ids = torch.tensor([list(prompt)])
        found = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=self._end,
            pad_token_id=self._end,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return found.sequences[0, len(prompt) :].tolist(), torch.cat(found.logits)

    def end_of(self, tokens: Sequence[int]) -> list[int]:
        """`tokens` followed by the end token."""
        return [*tokens, self._end]


def compare(peft: Peft, model: Model, task: str, prompts: Sequence[str]) -> Iterator[Difference]:
    """The conversations about which the two do not give the same text."""
    marker, asked = role_marker(task), invocations(task)["alora"]
    for prompt in prompts:
        ids = peft.encode(prompt + marker)
        with model.session() as chat:
            chat.append(prompt)
            verdict = chat.invoke(asked)
            same_prompt = [*chat.tokens, *model.tokenize(marker)] == ids
        tokens, logits = peft.answer(task, ids, asked.max_tokens)
        text = peft.decode(tokens)
        if not same_prompt:
            yield Difference(task, prompt, text, verdict.text, -1, 0.0)
        elif text != verdict.text:
            # where ours ended, its choice was the end token
            ours = peft.end_of(verdict.tokens)
            at = next(i for i, (a, b) in enumerate(zip(tokens, ours)) if a != b)  # noqa: B905
            margin = float(logits[at, tokens[at]] - logits[at, ours[at]])
            yield Difference(task, prompt, text, verdict.text, at, round(margin, 5))


def summary(
    counts: dict[str, int], differences: Sequence[Difference], files: Files
) -> dict[str, object]:
    """What parity.json holds."""
    total = sum(counts.values())
    return {
        "alora_gguf": __version__,
        "base": BASE,
        "files": files.hashes(),
        "conversations": counts,
        "same": total - len(differences),
        "total": total,
        "share": round((total - len(differences)) / total, 5),
        "floor": FLOOR,
        "differences": [asdict(difference) for difference in differences],
    }


def run(
    data: Data, peft: Peft, files: Files, *, n: int, threads: int, tasks: Sequence[str] = INTRINSICS
) -> dict[str, object]:
    """Compares `n` held-out conversations of each intrinsic, telling on stderr how it goes."""
    counts: dict[str, int] = {}
    differences: list[Difference] = []
    started = time.monotonic()
    adapters = {task: files.alora[task] for task in tasks}
    with open_model(files.bases[BASE], adapters, threads) as model:
        for task in tasks:
            prompts = [example.prompt for example in data.examples(task, "eval", n)]
            found = list(compare(peft, model, task, prompts))
            counts[task] = len(prompts)
            differences += found
            print(
                f"[{time.monotonic() - started:6.0f} s] {task}: {len(prompts) - len(found)} of "
                f"{len(prompts)} the same",
                file=sys.stderr,
                flush=True,
            )
    return summary(counts, differences, files)


def _files() -> tuple[Files, dict[str, Path]]:
    shipped = Files.shipped((BASE,))
    directories = {name: EXAMPLE / "peft" / "alora" / name for name in INTRINSICS}
    missing = [d.relative_to(ROOT).as_posix() for d in directories.values() if not d.is_dir()]
    if missing:
        raise InputError(f"{', '.join(missing)}: missing; `make demo-model` trains them")
    trained = [EXAMPLE / "base", *directories.values()]
    others = (*shipped.others, *(file for d in trained for file in d.glob("*.safetensors")))
    return replace(shipped, lora={}, others=others), directories


def main(argv: Sequence[str] | None = None) -> int:
    """Compares, lists what differs, writes parity.json; 1 below the floor."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo_model.parity", description=__doc__
    )
    parser.add_argument(
        "--n", type=int, default=300, help="conversations of each intrinsic (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=default_threads(), help="threads (%(default)s)"
    )
    parser.add_argument("--json", type=Path, default=RESULT, help="where to (%(default)s)")
    chosen = parser.parse_args(argv)
    if chosen.n < 1 or chosen.threads < 1:
        parser.error("--n and --threads must be above 0")
    try:
        from . import tasks

        files, directories = _files()
        peft = Peft(EXAMPLE / "base", directories, chosen.threads)
        result = run(tasks, peft, files, n=chosen.n, threads=chosen.threads)
    except (AloraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error}; pip install -e '.[train]'", file=sys.stderr)
        return 2
    chosen.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return tell(result)


def tell(result: dict[str, Any]) -> int:
    """Prints the verdict and each difference; the exit status."""
    for row in result["differences"]:
        print(
            f"{row['intrinsic']}: PEFT {row['peft']!r}, ours {row['ours']!r} "
            f"(token {row['token']}, margin {row['margin']:.4f} logits)"
        )
    print(
        f"{result['same']} of {result['total']} answers are the same ({result['share']:.2%}; floor "
        f"{result['floor']:.1%})"
    )
    return 0 if result["share"] >= result["floor"] else 1


if __name__ == "__main__":
    sys.exit(main())
