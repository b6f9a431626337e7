"""A stranger's chat template under limits: of steps, of what it makes, and of time.

Jinja's sandbox keeps a template from the program, not from looping for ever or from taking all
memory. So every step of a loop is counted, and whatever makes text says first how much.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from llama_cpp import llama_chat_format
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from alora_gguf._calls import check_text
from alora_gguf.errors import InputError

# Real templates have up to 20,000 characters; a conversation of a million tokens has 4 million, and
# a loop or two for each of its messages.
MAX_SOURCE: Final = 1 << 18  # characters of a template
MAX_STEPS: Final = 1_000_000  # of its loops, in all
MAX_CHARACTERS: Final = 100_000_000  # that it makes, in all, what it throws away included
MAX_COUNT: Final = 1_000_000  # a number that is given to a method or a filter
MAX_SECONDS: Final = 20.0

# these look at the structure of a value; all other filters may write it as text
_STRUCTURAL: Final = frozenset(
    {
        "attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "last",
        "length", "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse",
        "select", "selectattr", "slice", "sort", "sum", "unique",
    }
)  # fmt: skip
# and these compare or hash what it holds
_COMPARING: Final = frozenset({"dictsort", "groupby", "max", "min", "sort", "unique"})
_STRUCTURES: Final = (list, tuple, dict, set, frozenset)
_DROPPED: Final = ("lipsum", "urlize", "striptags")  # of no use in a chat


class _LimitError(InputError, jinja2.TemplateRuntimeError):
    """A template went too far."""


def _too_far(what: str) -> NoReturn:
    raise _LimitError(f"it {what}, so it would take too much time or memory")


class _Budget(threading.local):
    """What is left of a rendering's."""

    steps = MAX_STEPS
    characters = MAX_CHARACTERS
    until = float("inf")

    def begin(self) -> None:
        self.steps, self.characters = MAX_STEPS, MAX_CHARACTERS
        self.until = time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            _too_far(f"takes more than {MAX_STEPS:,} steps")
        if time.monotonic() > self.until:
            _too_far(f"takes more than {MAX_SECONDS:g} seconds")

    def make(self, n: int) -> None:
        self.step()
        self.characters -= n
        if self.characters < 0:
            _too_far(f"makes more than {MAX_CHARACTERS:,} characters")


_budget: Final = _Budget()


def _weight(*values: object, text: int = 1) -> int:
    """About how many characters values have as text; shared parts count each time, and so many
    characters of `text` as one.
    """
    total, stack = 0, list(values)
    while stack and total <= _budget.characters:
        value = stack.pop()
        total += 8
        if isinstance(value, (str, bytes)):
            total += len(value) // text
        elif isinstance(value, (list, tuple, set, frozenset)):
            stack.extend(value)
        elif isinstance(value, int):
            total += value.bit_length()
        elif isinstance(value, Mapping):
            stack.extend(value.keys())
            stack.extend(value.values())
    return total


def _weighed(value: Any, *others: object) -> Any:
    """`value`, which with `others` is about to be compared or hashed, as slowly as it is large:
    what shares its parts may take for ever to. Text is compared at once.
    """
    found = [each for each in (value, *others) if isinstance(each, _STRUCTURES)]
    if found:
        _budget.make(_weight(*found, text=1024))
    return value


class _Counted:
    """What a loop goes through, each step of it counted."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._values = values

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            _budget.step()
            yield value

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]  # a TypeError, as without us


class _Marked(NodeTransformer):
    """Sends loops, concatenations and what is compared or hashed through filters of ours."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (Jinja's names)
        self.generic_visit(node)
        node.iter = self._filter(node.iter, "alora counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._filter(nodes.List(node.nodes, lineno=node.lineno), "alora joined")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        compared: tuple[Any, ...] = (node, *node.ops)
        for each in compared:
            each.expr = self._filter(each.expr, "alora weighed")
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802 (of a dict)
        self.generic_visit(node)
        node.key = self._filter(node.key, "alora weighed")
        return node

    @staticmethod
    def _filter(node: Any, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _joined(values: Sequence[object]) -> str:
    _budget.make(_weight(*values))
    return "".join(map(str, values))


def _concat(pieces: Iterable[str]) -> str:
    kept = []
    for piece in pieces:
        _budget.make(len(piece))
        kept.append(piece)
    return "".join(kept)


def _final(value: object) -> object:
    if not isinstance(value, str):
        _budget.make(_weight(value))
    return value


def _check_format(text: str) -> None:
    """A width in a format makes text out of nothing."""
    if re.search(r"\d{5}|%[^%a-zA-Z]*\*|\{[^}]*\{", text):
        _too_far("pads text to a width")


def _cost(name: str, value: object, given: Sequence[object]) -> int:
    """What a method or a filter of that name may make of a value, in characters."""
    numbers = [each for each in given if isinstance(each, int)]
    if any(abs(number) > MAX_COUNT for number in numbers):
        _too_far(f"calls {name} with a number above {MAX_COUNT:,}")
    if name in ("translate", "maketrans"):
        _too_far(f"calls {name}")
    if name in ("format", "format_map") and isinstance(value, str):
        _check_format(value)
    cost = _weight(value, *given) + sum(map(abs, numbers))
    if name == "replace" and len(given) > 1 and isinstance(value, str):
        cost += value.count(str(given[0])) * len(str(given[1]))
    elif name == "join" and given:
        n = len(value) if isinstance(value, Sequence) else MAX_COUNT
        cost += n * len(str(given[0]))
    elif name in ("expandtabs", "indent", "tojson", "wordwrap"):
        widest = max([1, *map(abs, numbers), *(len(e) for e in given if isinstance(e, str))])
        cost *= widest
    return cost


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with the limits."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(_concat)

    def bound(self) -> None:
        """To be called once; adds what __init__ would."""
        self.optimized = False  # or constants would be computed while it is compiled
        self.finalize = _final
        for name in _DROPPED:
            self.globals.pop(name, None)
            self.filters.pop(name, None)
        for name, function in list(self.filters.items()):
            self.filters[name] = _bounded_filter(name, function)
        ours = {"counted": _Counted, "joined": _joined, "weighed": _weighed}
        self.filters.update((f"alora {name}", function) for name, function in ours.items())
        self.tests = {name: _bounded_test(test) for name, test in self.tests.items()}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        marked = _Marked().visit(source)
        return super()._generate(marked, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's own str.format() and format_map(), which have no `__self__`."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @functools.wraps(wrapped)
        def call(*args: Any, **kwargs: Any) -> str:
            _budget.make(_cost("format", value.__self__, (*args, *kwargs.values())))
            return wrapped(*args, **kwargs)

        return call

    def getitem(self, obj: Any, argument: Any) -> Any:
        """A key is hashed."""
        return super().getitem(obj, _weighed(argument))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Says first how much an operator makes."""
        if operator == "%":
            if isinstance(left, str):
                _check_format(left)
                _budget.make(_weight(left, right))
        elif operator == "+":
            if not isinstance(left, (int, float)):
                n = len(left) + len(right) if hasattr(left, "__len__") else 0
                _budget.make(n)
        elif isinstance(left, int) and isinstance(right, int):
            size = right if operator == "**" else right.bit_length()
            _budget.make(left.bit_length() * abs(size))
        elif operator == "*":
            many, few = (left, right) if isinstance(right, int) else (right, left)
            if isinstance(few, int) and hasattr(many, "__len__"):
                _budget.make(8 * len(many) * max(0, few))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Says first how much a string's method makes."""
        owner = getattr(__obj, "__self__", None)
        given = (*args, *kwargs.values())
        if isinstance(owner, (str, bytes)):
            name, value = __obj.__name__, owner
            if name == "join" and args:
                n = len(args[0]) if hasattr(args[0], "__len__") else MAX_COUNT
                _budget.make(n * len(owner))
            _budget.make(_cost(name, value, given) if name != "join" else _weight(*given))
        else:
            _budget.step()
            _weighed(owner, *given)
        return super().call(__context, __obj, *args, **kwargs)


def _bounded_test(function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _weighed(*args, *kwargs.values())
        return function(*args, **kwargs)

    return call


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passed = getattr(function, "jinja_pass_arg", None) is not None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        value, *given = (*args[passed:], *kwargs.values())
        known = (None, *given) if name in _STRUCTURAL else (value, *given)
        _budget.make(_cost(name, known[0], given))
        if name in _COMPARING:
            _weighed(value)
        return function(*args, **kwargs)

    return call


class _Moment(threading.local):
    """What templates take for the present: when their conversation began."""

    now: datetime | None = None


_moment: Final = _Moment()


@contextmanager
def at(now: datetime) -> Iterator[None]:
    """Templates that are rendered meanwhile, on this thread, write this date."""
    before, _moment.now = _moment.now, now
    try:
        yield
    finally:
        _moment.now = before


class Formatter(Jinja2ChatFormatter):
    """llama-cpp-python's, under the limits."""

    @staticmethod
    def strftime_now(f: str) -> str:
        """Hugging Face's function for templates that write the date."""
        return (_moment.now or datetime.now()).strftime(f)

    def __init__(self, template: str, *args: Any, **kwargs: Any) -> None:
        if len(template) > MAX_SOURCE:
            raise jinja2.TemplateError(
                f"it has {len(template):,} characters, expected at most {MAX_SOURCE:,}"
            )
        super().__init__("", *args, **kwargs)
        self.template = template
        environment: Any = self._environment.environment
        environment.__class__ = BoundedEnvironment  # with llama-cpp-python's own settings
        environment.bound()
        self._environment = environment.from_string(template)

    def __call__(self, **given: Any) -> Any:
        """A rendering, with a budget of its own."""
        _budget.begin()
        written = super().__call__(**given)
        check_text(written.prompt, "what the chat template writes")
        return written


_making, _lock = 0, threading.Lock()


@contextmanager
def bounded_templates() -> Iterator[None]:
    """While a llama_cpp.Llama is made: the templates of its file are under the limits as well."""
    global _making  # noqa: PLW0603 (as llama_chat_format is)
    with _lock:
        _making += 1
        llama_chat_format.Jinja2ChatFormatter = Formatter  # type: ignore[misc]
    try:
        yield
    finally:
        with _lock:
            _making -= 1
            if not _making:
                llama_chat_format.Jinja2ChatFormatter = Jinja2ChatFormatter  # type: ignore[misc]
