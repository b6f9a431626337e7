"""What the tests of chats share: templates for the tiny model, and readings in a fresh context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

import alora_gguf as ag
from tests.support import inside, tiny_base
from tests.support.files import Files

GREEDY = ag.Sampling(temperature=0.0)
PLAIN = (
    "{%- for d in documents or [] -%}{{ '<|user|>[' + d.text + ']<|end|>' }}{%- endfor -%}"
    "{%- for m in messages -%}"
    "{{ ('<|user|>#' if m.role == 'system' else '<|' + m.role + '|>') + m.content + '<|end|>' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
# earlier replies of the assistant are written without the space around them and what is in ( )
TRIMS = (
    "{%- for m in messages -%}{%- set c = m.content -%}"
    "{%- if m.role == 'assistant' and not loop.last and ')' in c -%}"
    "{%- set c = c.split(')')[-1] -%}{%- endif -%}"
    "{{ '<|' + m.role + '|>' + (c | trim) + '<|end|>' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
# takes turns of user and assistant only, as many published ones do
STRICT = (
    "{%- for m in messages -%}"
    "{%- if m.role != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}"
    "{{ raise_exception('roles must alternate') }}{%- endif -%}"
    "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


YES_NO = """
model: ~
response_format: '{"type": "string", "enum": ["yes", "no"]}'
transformations:
  - {type: likelihood, input_path: [], categories_to_values: {"yes": 1.0, "no": 0.0}}
"""


def rendered(template: str, messages: Sequence[Any], *, prompt: bool, **more: object) -> str:
    """The text of a conversation by plain Jinja, set up as transformers does."""
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # noqa: S701 (no HTML)
    dicts = [m if isinstance(m, dict) else {"role": m.role, "content": m.content} for m in messages]
    return env.from_string(template).render(messages=dicts, add_generation_prompt=prompt, **more)


def says(text: str, *, then: str = "") -> ag.Sampling:
    """Sampling that can only say `text`, by a grammar; `then` is more GBNF."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return ag.Sampling(temperature=0.0, grammar=f'root ::= "{quoted}" {then}')


def saying(text: str, **more: Any) -> ag.GenerateOptions:
    """Options of a reply that can only be `text`, in whatever tokens the model likes best."""
    return ag.GenerateOptions(sampling=says(text), **more)


def brief(n: int = 6, **more: Any) -> ag.GenerateOptions:
    return ag.GenerateOptions(max_tokens=n, sampling=GREEDY, **more)


def close_to(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any], within: float = 1e-4) -> bool:
    """Whether two rows of logits differ by less than `within` of the largest one."""
    return float(np.abs(one - other).max()) < within * float(np.abs(other).max())


def logits_after(session: ag.Session, more: Sequence[int] = (1,), **use: Any) -> Any:
    """The logits that a session's cells give after `more` tokens; the session stays as it is."""
    with session.fork() as fork:
        fork.sync([*session.tokens, *more], **use)
        return inside.last_logits(fork)


def assert_sound(chat: ag.Chat, files: Files, **use: Any) -> None:
    """Python and llama.cpp agree about the cells, which are those of a fresh reading."""
    session, engine = chat.session, inside.engine(chat.model)
    record, seq = inside.sequence(session).cached, inside.sequence(session).seq
    assert record.tokens == session.tokens[: len(record)]
    assert engine.cells.length(seq) == len(record)
    assert inside.last_position(session) == len(record) - 1
    with files.model() as model, model.session() as fresh:
        fresh.sync([*session.tokens, 1], **use)
        assert close_to(logits_after(session, **use), inside.last_logits(fresh))


def assert_nothing_left(model: ag.Model) -> None:
    """All sequences and cells have been given back."""
    while inside.prefix_cache(model).evict():
        pass
    inside.engine(model).collect()
    cells = inside.cells(model)
    assert (cells.used(), cells.promised()) == (0, 0)
    assert cells.free_sequences == cells.n_seqs


def role_adapter(folder: Path, name: str, invocation: Sequence[int], seed: int = 21) -> Path:
    """An aLoRA with another invocation than those of `files`."""
    return tiny_base.write_adapter(folder / f"{name}.gguf", invocation=invocation, seed=seed)


def interrupt_at(n: int, error: Callable[[], BaseException] = KeyboardInterrupt) -> Any:
    """A stand-in for Sampler.sample that raises at the n-th call, as Ctrl-C would."""
    from alora_gguf.generate.sampling import Sampler

    real, calls = Sampler.sample, [0]

    def sample(self: Sampler, logits: Any) -> int:
        calls[0] += 1
        if calls[0] == n:
            raise error()
        return real(self, logits)

    return sample
