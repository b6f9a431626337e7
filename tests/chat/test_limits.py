"""A template that loops for ever or multiplies text ends in a sentence, soon, in little memory."""

from __future__ import annotations

import contextlib
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

BUILT = (  # two values of 2^40 parts that share them, built apart
    "{{% set ns = namespace(x={0}, y={0}) %}}{{% for i in range(40) %}}"
    "{{% set ns.x = {1} %}}{{% set ns.y = {2} %}}{{% endfor %}}"
)
LISTS = BUILT.format("['a']", "[ns.x, ns.x]", "[ns.y, ns.y]")
DICTS = BUILT.format("['a']", "{'a': ns.x, 'b': ns.x}", "{'a': ns.y, 'b': ns.y}")
TUPLES = BUILT.format("('a',)", "(ns.x, ns.x)", "(ns.y, ns.y)")
ARGUMENTS = (
    "{% set ns = namespace(x=('a',), y=('a',)) %}"
    "{% macro f() %}{% set ns.x = varargs %}{% endmacro %}"
    "{% macro g() %}{% set ns.y = varargs %}{% endmacro %}"
    "{% for i in range(40) %}{{ f(ns.x, ns.x) }}{{ g(ns.y, ns.y) }}{% endfor %}"
)
COMPARED = {
    "==": LISTS + "{{ ns.x == ns.y }}",
    "== of dicts": DICTS + "{{ ns.x == ns.y }}",
    "!= of tuples": TUPLES + "{% if ns.x != ns.y %}{% endif %}",
    "<": LISTS + "{{ 1 if ns.x < ns.y else 2 }}",
    "a chain": LISTS + "{{ [] < [1] < ns.x < ns.y }}",
    "in": LISTS + "{{ ns.x in [ns.y] }}",
    "not in": LISTS + "{{ ns.x not in [1, ns.y] }}",
    "is eq": LISTS + "{{ ns.x is eq ns.y }}",
    "is in": LISTS + "{{ ns.x is in [ns.y] }}",
    "select": LISTS + "{{ [ns.x] | select('==', ns.y) | list | length }}",
    "rejectattr": LISTS + "{{ [{'a': ns.x}] | rejectattr('a', 'in', [ns.y]) | list | length }}",
    "sort": LISTS + "{{ [ns.x, ns.y] | sort | length }}",
    "max": LISTS + "{{ [ns.x, ns.y] | max | length }}",
    "min": LISTS + "{{ [ns.x, ns.y] | min | length }}",
    "unique": TUPLES + "{{ [ns.x, ns.y] | unique | list | length }}",
    "groupby": LISTS + "{{ [{'a': ns.x}, {'a': ns.y}] | groupby('a') | list | length }}",
    "dictsort": LISTS + "{{ {'a': ns.x, 'b': ns.y} | dictsort(by='value') | length }}",
    "index": LISTS + "{{ [ns.x].index(ns.y) }}",
    "count": LISTS + "{{ [ns.x].count(ns.y) }}",
    "a key": TUPLES + "{{ {ns.x: 1} | length }}",
    "a subscript": TUPLES + "{{ {}[ns.x] }}",
    "get": TUPLES + "{{ {}.get(ns.x) }}",
    "attr": TUPLES + "{{ {} | attr(ns.x) }}",
    "changed": LISTS + "{% for i in [ns.x, ns.y] %}{{ loop.changed(i) }}{% endfor %}",
    "of a loop": LISTS + "{% for i in [ns.x] if i == ns.y %}{% endfor %}",
    "of arguments": ARGUMENTS + "{{ ns.x == ns.y }}",
    "parts": LISTS + "{{ ns.x | batch(1) | list == ns.y | batch(1) | list }}",
}


@pytest.fixture(autouse=True)
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STEPS", 100_000)
    monkeypatch.setattr(limits, "MAX_CHARACTERS", 2_000_000)


@pytest.mark.parametrize(
    "source",
    [*LOOPS.values(), *BOMBS.values(), *COMPARED.values()],
    ids=[*LOOPS, *BOMBS, *COMPARED],
)
def test_it_ends(files: Files, source: str) -> None:
    with files.model() as model:
        template = ChatTemplate(source, inside.vocab(model), "t.jinja")
        started = time.process_time()
        with pytest.raises(InputError, match=r"t\.jinja: the chat template refused"):
            template.render([ag.Message("user", "Hi")], [], {}, prompt=True)
        assert time.process_time() - started < 15


def test_long_texts_are_compared_as_often_as_one_likes(files: Files) -> None:
    source = (
        "{% for m in messages %}{% for n in messages %}"
        "{% if m == n and m in messages and m.content == n.content %}{{ loop.index }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    with files.model() as model:
        template = ChatTemplate(source, inside.vocab(model), "t.jinja")
        said = [ag.Message("user", f"{i}" + "x" * 20_000) for i in range(20)]
        assert template.render(said, [], {}, prompt=True) == "".join(map(str, range(1, 21)))


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


@pytest.mark.parametrize("call", ["'a'.center({n})", "[1] | batch({n})"])
def test_numbers_are_bounded(files: Files, call: str) -> None:
    with files.model() as model:
        for n, fits in ((limits.MAX_COUNT, True), (limits.MAX_COUNT + 1, False)):
            source = f"{{% set x = {call.format(n=n)} %}}"
            template = ChatTemplate(source, inside.vocab(model), "t")
            refused = pytest.raises(InputError, match="with a number above 1,000,000")
            with contextlib.nullcontext() if fits else refused:
                template.render([], [], {}, prompt=True)


def test_time_is_a_limit(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.0)
    with files.model() as model:
        template = ChatTemplate("{% for i in [1, 2] %}{% endfor %}", inside.vocab(model), "t")
        with pytest.raises(InputError, match="more than 0 seconds"):
            template.render([], [], {}, prompt=True)


def test_each_rendering_has_all_of_it(files: Files) -> None:
    source = "{% for i in range(60000) %}{% endfor %}{{ 'a' * 100000 }}"
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
