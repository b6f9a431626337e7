"""A template that loops for ever or multiplies text ends in a sentence, soon, in little memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import alora_gguf as ag
from alora_gguf.chat import limits
from alora_gguf.chat.prompt import ChatTemplate
from alora_gguf.errors import InputError, ModelError
from alora_gguf.llama import Llama
from tests.support import inside, tiny_base
from tests.support.files import Files

LOOPS = {
    "steps": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "steps of a comprehension": "{{ range(99999) | map('string') | list * 99999 }}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "recursive loops": "{% set l = [[[]]] %}{% for i in l recursive %}{{ loop(l) }}{% endfor %}",
}
DOUBLING = (
    "{{% set ns = namespace(x='ab') %}}"
    "{{% for i in range(60) %}}{{% set ns.x = {} %}}{{% endfor %}}"
)
BOMBS = {
    "times": "{{ 'a' * 10 ** 10 }}",
    "times in a variable": "{% set x = 'a' * 9999999999 %}",
    "a list": "{{ [1] * 10 ** 10 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a product of powers": "{% set ns = namespace(x=9) %}{% for i in range(60) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "plus": DOUBLING.format("ns.x + ns.x"),
    "tilde": DOUBLING.format("ns.x ~ ns.x"),
    "join": DOUBLING.format("[ns.x, ns.x] | join"),
    "join of a string": DOUBLING.format("ns.x.join([ns.x, ns.x, ns.x])"),
    "replace": DOUBLING.format("ns.x.replace('a', 'aa').replace('b', ns.x)"),
    "the filter": DOUBLING.format("ns.x | replace('a', ns.x)"),
    "percent": "{{ '%9999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (9999999999, 1) }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "format nested": "{{ '{:{}}'.format(1, 9999999999) }}",
    "format_map": "{{ '{a:9999999999}'.format_map({'a': 1}) }}",
    "format as an attribute": "{{ ('{:9999999999}' | attr('format'))(1) }}",
    "the format filter": "{{ '%9999999999d' | format(1) }}",
    "center": "{{ 'a' | center(9999999999) }}",
    "ljust": "{{ 'a'.ljust(9999999999) }}",
    "zfill": "{{ 'a'.zfill(9999999999) }}",
    "expandtabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "indent": "{{ ('\n' * 100000) | indent(100000) }}",
    "indent of json": "{{ messages | tojson(indent=999999999) }}",
    "translate": "{{ 'aaa'.translate({97: 'a' * 1000}) }}",
    "a list in lists": "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "a list in lists as json": "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "round": "{{ 1 | round(999999999, 'floor') }}",
    "a block": "{% set x %}{% for i in range(900) %}{{ 'a' * 999999 }}{% endfor %}{% endset %}",
}


@pytest.fixture(autouse=True)
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STEPS", 100_000)
    monkeypatch.setattr(limits, "MAX_CHARACTERS", 10_000_000)


@pytest.mark.parametrize("source", [*LOOPS.values(), *BOMBS.values()], ids=[*LOOPS, *BOMBS])
def test_it_ends(files: Files, source: str) -> None:
    with files.model() as model:
        template = ChatTemplate(source, inside.vocab(model), "t.jinja")
        started = time.process_time()
        with pytest.raises(InputError, match=r"t\.jinja: the chat template refused"):
            template.render([ag.Message("user", "Hi")], [], {}, prompt=True)
        assert time.process_time() - started < 15


def test_too_long_or_too_deep(files: Files) -> None:
    with files.model() as model:
        for source, words in (
            ("a" * (limits.MAX_SOURCE + 1), "expected at most 262,144"),
            ("{{ " + "(" * 3000 + ")" * 3000 + " }}", "cannot be parsed"),
            ("{{ " + "not " * 30000 + "1 }}", "cannot be parsed"),
            ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "cannot be parsed"),
        ):
            with pytest.raises(ModelError, match=words):
                ChatTemplate(source, inside.vocab(model), "t.jinja")


def test_time_is_a_limit(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.0)
    with files.model() as model:
        template = ChatTemplate("{% for i in [1, 2] %}{% endfor %}", inside.vocab(model), "t")
        with pytest.raises(InputError, match="more than 0 seconds"):
            template.render([], [], {}, prompt=True)


def test_each_rendering_has_all_of_it(files: Files) -> None:
    source = "{% for i in range(60000) %}{% endfor %}{{ 'a' * 700000 }}"
    with files.model() as model:
        template = ChatTemplate(source, inside.vocab(model), "t.jinja")
        for n in range(20):
            template.render([ag.Message("user", f"{n}")], [], {}, prompt=True)


@pytest.mark.parametrize("source", [BOMBS["times"], LOOPS["steps"], BOMBS["tilde"]])
def test_the_drop_in(tmp_path: Path, source: str) -> None:
    """Which llama-cpp-python makes the formatter of, and Jinja folds its constants."""
    base = tiny_base.write_base(tmp_path / "base.gguf", template=source)
    with (
        Llama(base, n_ctx=256, n_threads=1, verbose=False) as llm,
        pytest.raises(InputError, match="too much time or memory"),
    ):
        llm.create_chat_completion([{"role": "user", "content": "Hi"}])
