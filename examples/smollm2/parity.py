"""`python -m examples.smollm2.parity DATA PEFT`: the same verdicts from PEFT and from our runtime?

PEFT computes in F32 with the weights that the Q4_1 base dequantises to, PEFT/<name> being what
`alora-gguf train --peft-out` wrote; the runtime runs them as F16, with the shipped adapters. Writes
parity.json and fails below 99 % of equal answers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from alora_gguf import AloraError, IntrinsicCall, Model, __version__, smollm2
from alora_gguf.engine.tokens import common
from alora_gguf.errors import InputError
from alora_gguf.threads import default_threads
from alora_gguf.train.asking import Deciding, Example, asking
from alora_gguf.train.hf_model import load_model
from examples.demo_model.evaluate import write_json
from examples.demo_model.parity import Difference, tell
from examples.demo_model.runtime import open_model

from .evaluate import EXAMPLE, QUESTIONS, SHIPPED, Files, hashes

RESULT: Final = EXAMPLE / "parity.json"
FLOOR: Final = 0.99
BASE: Final = "F16"
_MAX_TOKENS: Final = 128  # of a text: the contracts'


class Peft:
    """The base that a GGUF dequantises to with its aLoRAs, in PEFT, on the CPU."""

    def __init__(self, base: Path, adapters: Mapping[str, Path], n_threads: int) -> None:
        import torch
        from peft import PeftModel

        torch.set_num_threads(n_threads)
        model: Any = load_model(base)
        for name, folder in adapters.items():
            if not (folder / "adapter_config.json").is_file():
                raise InputError(f"{folder}: is not a PEFT directory; `--peft-out` writes one")
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), name)
            else:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
            if not model.peft_config[name].alora_invocation_tokens:
                raise InputError(f"{folder}: is a plain LoRA, expected an aLoRA")
        self._model = model.eval()

    def logits(self, name: str, tokens: Sequence[int]) -> Any:
        """Of what comes after the tokens: [n_vocab]."""
        import torch

        self._model.set_adapter(name)
        with torch.no_grad():
            found = self._model(input_ids=torch.tensor([list(tokens)]), logits_to_keep=1)
        return found.logits[0, -1]

    def reply(self, name: str, tokens: Sequence[int], ends: Sequence[int], limit: int) -> list[int]:
        """The likeliest next tokens, one after another, up to an end token, which is left out."""
        import torch

        self._model.set_adapter(name)
        ids = torch.tensor([list(tokens)])
        found = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=list(ends),
            pad_token_id=ends[0],
        )
        said: list[int] = found[0, len(tokens) :].tolist()
        return said[:-1] if said and said[-1] in ends else said


def compare(
    peft: Peft, model: Model, task: str, examples: Sequence[Example], answers: Sequence[Any]
) -> Iterator[Difference]:
    """The conversations about which the two differ. Of decisions, between `answers`, the verdicts
    are compared, by the first token in which these replies part; else the texts, token by token.
    """
    decides = isinstance(asking(model, task), Deciding)
    for example in examples:
        if decides:
            found = _verdicts(peft, model, task, example, answers)
        else:
            found = _texts(peft, model, task, example)
        if found is not None:
            yield found


def _verdicts(
    peft: Peft, model: Model, task: str, example: Example, answers: Sequence[Any]
) -> Difference | None:
    asked, call = asking(model, task), IntrinsicCall(task, example.arguments)
    assert isinstance(asked, Deciding)
    with model.chat(messages=example.messages, documents=example.documents) as chat:
        replies = [chat.supervise(call, answer) for answer in answers]
        ours = asked.adapter(chat, example, None).value
    texts = [each.reply for each in replies]
    at = min(common(texts[0], text) for text in texts[1:])
    logits = peft.logits(task, [*replies[0].prompt, *texts[0][:at]])
    nexts = [float(logits[text[at]]) for text in texts]
    best = max(range(len(nexts)), key=nexts.__getitem__)
    names = [asked.names[asked.right(_answering(example, answer))] for answer in answers]
    own = names.index(asked.names[ours])
    if own == best:
        return None
    margin = round(nexts[best] - nexts[own], 5)
    where = f"line {example.line}"
    return Difference(task, where, names[best], names[own], at, margin)


def _answering(example: Example, answer: Any) -> Example:
    return Example(example.messages, answer, line=example.line)


def _texts(peft: Peft, model: Model, task: str, example: Example) -> Difference | None:
    call, schema = IntrinsicCall(task, example.arguments), model.contract(task).response_format
    with model.chat(messages=example.messages, documents=example.documents) as chat:
        known = chat.supervise(call, example.answer)
        text = chat.invoke(call).text
        value = text if schema is None else json.loads(text)
        ours = chat.supervise(call, value).reply
    begun = known.reply[: known.n_forced]
    said = (*begun, *peft.reply(task, (*known.prompt, *begun), model.end_tokens, _MAX_TOKENS))
    theirs = model.detokenize(said)
    if theirs == text:
        return None
    at = common(said, ours)
    logits = peft.logits(task, [*known.prompt, *said[:at]])
    end = model.end_tokens[0]
    a, b = (each[at] if at < len(each) else end for each in (said, ours))
    margin = round(float(logits[a] - logits[b]), 5)
    return Difference(task, f"line {example.line}", str(theirs), text, at, margin)


def still_true(
    known: Mapping[str, Any], files: Files
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """What parity.json has of intrinsics that are not compared again and whose adapters are the
    same: conversations by intrinsic, and differences.
    """
    there = {name: hashes([path]) for name, path in smollm2.adapter_paths().items()}
    counts = {
        name: n
        for name, n in known.get("conversations", {}).items()
        if name not in files.alora and there.get(name, {"": ""}).items() <= known["files"].items()
    }
    return counts, [each for each in known.get("differences", ()) if each["intrinsic"] in counts]


def run(
    peft: Peft,
    base: Path,
    files: Files,
    *,
    part: str,
    n: int,
    threads: int,
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compares `n` conversations of each intrinsic on `base`, telling on stderr how it goes; what
    is `known` of others with the same adapters stays.
    """
    counts, differences = still_true(known or {}, files)
    started = time.monotonic()
    with open_model(base, dict(files.alora), threads) as model:
        for task in files.alora:
            examples, training = files.examples(task, part, n)
            answers = {json.dumps(each.answer): each.answer for each in training}
            found = list(compare(peft, model, task, examples, list(answers.values())))
            counts[task] = len(examples)
            differences += map(asdict, found)
            print(
                f"[{time.monotonic() - started:6.0f} s] {task}: {len(examples) - len(found)} of "
                f"{len(examples)} the same",
                file=sys.stderr,
                flush=True,
            )
    total, adapters = sum(counts.values()), {**smollm2.adapter_paths(), **files.alora}
    return {
        "alora_gguf": __version__,
        "base": BASE,
        "files": hashes(path for name, path in adapters.items() if name in counts),
        "conversations": counts,
        "same": total - len(differences),
        "total": total,
        "share": round((total - len(differences)) / total, 5),
        "floor": FLOOR,
        "differences": differences,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Compares, lists what differs, writes parity.json; 1 below the floor."""
    parser = argparse.ArgumentParser(prog="python -m examples.smollm2.parity", description=__doc__)
    tasks = list(QUESTIONS)
    parser.add_argument("data", type=Path, help="where examples.smollm2.data wrote to")
    parser.add_argument("peft", type=Path, help="where the adapters' PEFT directories are")
    parser.add_argument("--n", type=int, default=300, help="conversations of each (%(default)s)")
    parser.add_argument(
        "--intrinsics", nargs="+", choices=tasks, help="(those that there are adapters for)"
    )
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--json", type=Path, default=RESULT, help="where to (%(default)s)")
    chosen = parser.parse_args(argv)
    if chosen.n < 1 or chosen.threads < 1:
        parser.error("--n and --threads must be above 0")
    try:
        named = chosen.intrinsics or smollm2.adapter_paths()
        files = Files.known(chosen.data, (SHIPPED, BASE), named)
        folders = {name: chosen.peft / name for name in files.alora}
        peft = Peft(files.bases[SHIPPED], folders, chosen.threads)
        old = json.loads(chosen.json.read_text("utf-8")) if chosen.json.is_file() else None
        result = run(
            peft,
            files.bases[BASE],
            files,
            part="eval",
            n=chosen.n,
            threads=chosen.threads,
            known=old,
        )
    except (AloraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(result, chosen.json)
    return tell(result)


if __name__ == "__main__":
    sys.exit(main())
