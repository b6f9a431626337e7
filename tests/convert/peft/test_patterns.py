"""Patterns on module names match what PEFT matches, and never take long about it."""

from __future__ import annotations

import contextlib
import json
import random
import re
import types
import warnings
from pathlib import Path

import pytest
from alora_gguf.convert.peft.config import read_config
from alora_gguf.convert.peft.patterns import PatternTable

from alora_gguf.errors import FileFormatError, UnsupportedAdapterError

KINDS = [f"self_attn.{k}_proj" for k in "qkvo"] + [f"mlp.{k}_proj" for k in ("gate", "up", "down")]
MODULES = [f"model.layers.{layer}.{kind}" for layer in range(40) for kind in KINDS]

# what adapters on the hub and PEFT's own documentation have
REAL = [
    "q_proj",
    "self_attn.q_proj",
    "model.layers.3.mlp.up_proj",
    r"model\.layers\.3\.mlp\.up_proj",
    "^model.layers.0.self_attn.k_proj",
    "layers.1.self_attn.k_proj",
    r"layers\.(0|1|2)\.self_attn\.q_proj",
    r"layers\.([0-9]|1[0-5])\..*",
    r".*\.q_proj",
    ".*q_proj",
    "^.*v_proj$",
    ".*layers.[0-9]+.*k_proj",
    r".*\.(?:gate|up)_proj",
    r"(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj",
    r"model\.layers\.\d{2}\.mlp.+",
    r"layers\.1[^.]*\.self_attn\.[qk]_proj",
    "(?P<kind>mlp)[.](up|down)_proj",
    r"\Amodel.*o_proj\Z",
    "q_proj)|(v_proj",  # its second half may stand anywhere, as PEFT puts parentheses around it
    "proj",
    "",
    "model",
]


def by_re(pattern: str, module: str) -> bool:
    """What PEFT's get_pattern_key does."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def matches(pattern: str, module: str) -> bool:
    # a module that is called like the pattern has its value even where it does not match
    return PatternTable({pattern: 1}, "x").find(module, 0) == 1 if pattern != module else True


@pytest.mark.parametrize("pattern", REAL)
def test_patterns_that_people_use(pattern: str) -> None:
    for module in [*MODULES, "q_proj", "lm_head", "model.layers.3", "xmodel.layers.0.mlp.up_proj"]:
        assert matches(pattern, module) == by_re(pattern, module), module


@pytest.mark.parity
def test_the_same_as_peft() -> None:
    other = pytest.importorskip("peft.utils.other", reason="the oracle; the test extra has it")
    tables = [REAL, REAL[::-1], [], MODULES[7:90], ["lm_head", "a)|(b"]]
    for patterns in tables:
        values = {pattern: number for number, pattern in enumerate(patterns)}
        table = PatternTable(values, "x")
        for module in [*MODULES, "lm_head", "q_projx", "a", "b"]:
            key = other.get_pattern_key(values.keys(), module)
            assert table.find(module, -1) == values.get(key, -1)


LEAVING: list[dict[str, object]] = [
    {"target_modules": ["q_proj", "mlp.up_proj", "lm_head"]},
    {"target_modules": ["model.layers.1.self_attn.q_proj"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [1, 12]},
    {"target_modules": ["q_proj"], "layers_to_transform": 3},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    {"target_modules": ["c_attn", "q_proj"], "layers_to_transform": [1], "layers_pattern": ["h"]},
    {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": []},
    {"target_modules": ["w1"], "layers_to_transform": [0]},
]


@pytest.mark.parity
@pytest.mark.parametrize("said", LEAVING)
def test_what_is_left_out_is_what_peft_leaves_out(said: dict[str, object], tmp_path: Path) -> None:
    tuners = pytest.importorskip("peft.tuners.tuners_utils", reason="the oracle of the test extra")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": 8, **said}))
    config = read_config(path)
    theirs = types.SimpleNamespace(layers_to_transform=None, layers_pattern=None)
    vars(theirs).update(said)
    more = ["lm_head", "transformer.h.1.attn.c_attn", "model.layers.1.experts.0.w1", "layers.x"]
    for module in [*MODULES, *more, "model.layers.0.experts.1.w1", "transformer.h.0.attn.c_attn"]:
        loads = bool(tuners.check_target_module_exists(theirs, module))
        assert config.leaves_out(module) != loads, module


def _expression(rng: random.Random, depth: int = 0) -> str:
    def part() -> str:
        return _expression(rng, depth + 1)

    kind = rng.randrange(12 if depth < 4 else 5)
    if kind < 3:
        return rng.choice("ab.")
    if kind == 3:
        sets = ["[ab]", "[^a]", "[]a]", "[^]a]", r"[\]b]", "[a-b.]", "[", "]"]
        return rng.choice([r"\.", r"\w", r"\W", r"\d", r"\-", "{", "}", "-", *sets])
    if kind == 4:
        return rng.choice(["a", "^", "$", r"\A", r"\Z", "", "{,2}", "a{}", "(?P<n>a)"])
    if kind < 7:
        return part() + part()
    opening = rng.choice(["(", "(?:"])
    if kind == 7:
        return f"{opening}{part()})"
    if kind == 8:
        return f"{opening}{part()}|{part()})"
    if kind == 9:
        return f"{part()}|{part()}"
    counts = ["*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "{,}", "*?", "+?", "??", "{1}?"]
    return f"{opening}{part()}){rng.choice(counts)}"


def test_the_same_as_re_for_random_expressions() -> None:
    rng = random.Random(5)
    tried = matched = 0
    refused: list[str] = []
    while tried < 6_000:
        pattern = _expression(rng)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expression = re.compile(rf"(.*\.)?({pattern})$")
        except re.error:
            continue
        try:
            table = PatternTable({pattern: 1}, "x")
        except UnsupportedAdapterError:
            refused.append(pattern)
            continue
        for _ in range(8):
            module = "".join(rng.choice("ab.a_1") for _ in range(rng.randrange(1, 9)))
            want = expression.match(module) is not None
            assert module == pattern or (table.find(module, 0) == 1) == want, (pattern, module)
            tried += 1
            matched += want
    assert matched > 300
    assert all("{" in pattern for pattern in refused)


def test_the_first_pattern_that_matches_counts() -> None:
    table = PatternTable({"mlp.up_proj": 1, ".*_(proj|x)": 2, "up_proj": 3, "q+": 4}, "x")
    modules = ["mlp.up_proj", "a.up_proj", "q", "lm_head", "q+"]
    assert [table.find(module, 0) for module in modules] == [1, 2, 4, 0, 4]


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|a)*b",
        "(a|aa)+$",
        "(.*)*x",
        "(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)z",
        "(a|a)" * 40 + "z",
        "(?:(?:.?){30}){30}x",
        "(?:.?){1900}x",
        "(?:.*.?){900}x",
        "(" * 90 + "a" + ")*" * 90 + "z",
        "(" * 3000,
        "(" * 3000 + ")" * 3000,
        "(((a{0,100}){0,100}){0,100})",
        "a{99999999999}",
        "[" * 2000 + "a]",
        "." * 6000,
        "(a)" * 4900,
    ],
)
def test_hostile_patterns_end(pattern: str) -> None:
    """They take 0.01 s to 1 s, and with `re` for ever."""
    with contextlib.suppress(FileFormatError, UnsupportedAdapterError):
        table = PatternTable({pattern: 1}, "x")
        for module in [*MODULES, "a" * 200, "a" * 199 + "z"]:
            table.find(module, 0)


def test_the_time_is_for_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alora_gguf.convert.peft.patterns._SECONDS", 0.05)
    table = PatternTable({f"(a|aa|{i})+$": i for i in range(1000)}, "c.json: rank_pattern")
    names = ["a" * n + "z" for n in range(1000)]
    with pytest.raises(UnsupportedAdapterError) as caught:
        [table.find(name, -1) for name in names]
    assert str(caught.value).startswith("c.json: rank_pattern holds '(a|aa|")
    assert str(caught.value).endswith(
        ", which takes too long to match; write the modules' names out instead"
    )


def test_a_pattern_for_every_module() -> None:
    """EVA writes rank_pattern so."""
    for names in (MODULES, [re.escape(m) for m in MODULES], [f".*{m}" for m in MODULES]):
        table = PatternTable({name: i for i, name in enumerate(names)}, "x")
        assert [table.find(module, -1) for module in MODULES] == list(range(len(MODULES)))


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=model).*q_proj",
        "(?!.*vision).*q_proj",
        r"(?<=mlp\.)up_proj",
        "(?<!x)q_proj",
        r"(.)\1lp.*",
        "(?P<n>m)odel.*(?P=n)lp.*",
        "(x)?(?(2)a|.*q_proj)",
        "(?i:Q_PROJ)",
        "(?#note)q_proj",
        r"\bq_proj",
        r"\x71_proj",
    ],
)
def test_look_arounds_and_back_references(pattern: str) -> None:
    assert [matches(pattern, m) for m in MODULES] == [by_re(pattern, m) for m in MODULES]


@pytest.mark.parametrize("pattern", ["q_pro{e<=1}", "(q){e}", "[[:alpha:]]_proj", "[^[:digit:]]x"])
def test_what_regex_reads_in_another_way_is_refused(pattern: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match="cannot be part of a module's name; write"):
        PatternTable({pattern: 1}, "c.json: rank_pattern")


def test_groups_in_groups_are_matched_or_refused() -> None:
    for depth in range(10, 500, 10):
        with contextlib.suppress(FileFormatError, UnsupportedAdapterError):
            table = PatternTable({"(" * depth + "a" + ")" * depth: 1}, "x")
            assert (table.find("a", 0), table.find("b", 0)) == (1, 0)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("q_(", r"holds 'q_\(', which is not a regular expression: missing \), unterminated"),
        ("a{99999999999}", "which is not a regular expression: the repetition number is too large"),
        ("*", "which is not a regular expression: nothing to repeat"),
        ("a\nb(", r"holds 'a\\nb\(', expected at most 5000 printable letters"),
        ("(" * 5001, r"holds '\({80}', expected at most 5000"),
    ],
)
def test_what_is_no_regular_expression(pattern: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        PatternTable({pattern: 1}, "c.json: rank_pattern")
