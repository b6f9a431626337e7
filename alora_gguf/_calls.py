"""Around every public call: arguments of the wrong kind are refused by name, as the annotations
say, and signals whose handlers raise, Ctrl-C above all, wait until the call can end.

What kind a thing is, not what is in it: who takes a sequence of tokens checks the tokens.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import functools
import inspect
import os
import signal
import sys
import threading
import time
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar, Union, cast

from .errors import InputError

_T = TypeVar("_T")
_Test = Callable[[object], bool]
_NUMBERS: Final = ("int", "float", "int | None", "float | None")  # whose ranges say more
_RECORDS: Final = ("Sampling", "GenerateOptions", "ContextOptions", "IntrinsicCall")
_SHOWN: Final = 80  # characters of a wrong value in a message
_WORDS: Final[dict[object, str]] = {
    str: "a string", int: "an integer", float: "a number", bool: "True or False",
    type(None): "None", os.PathLike: "a path", Mapping: "a mapping", Sequence: "a list",
    Iterable: "a list", Callable: "a function",
}  # fmt: skip


class Within(NamedTuple):
    """The range of a number, both ends included, in its annotation: `Annotated[int, Within(1)]`.

    An end that is not given is where C's int or float ends, which leaves out NaN and infinities.
    """

    low: float | None = None
    high: float | None = None

    @functools.lru_cache(256)  # noqa: B019 (a range keeps nothing else alive)
    def test(self, kind: type) -> tuple[_Test, str]:
        """What tells whether a value is an int or float in the range, and that in words."""
        words = "an integer" if kind is int else "a finite number"
        if self.high is not None:
            words += f" in [{self.low}, {self.high}]"
        elif self.low is not None:
            words += f" of at least {self.low}"
        low, high = (-(2**31), 2**31 - 1) if kind is int else (-3.4e38, 3.4e38)
        low = low if self.low is None else self.low
        high = high if self.high is None else self.high
        is_number: Callable[[Any], bool] = _is_number(kind)
        return (lambda value: is_number(value) and low <= cast(float, value) <= high), words


def check_kind(value: object, name: str, test: _Test, words: str) -> None:
    """Raises InputError for a value that does not pass."""
    if not test(value):
        if isinstance(value, str):
            check_text(value, name)
        shown = repr(value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        raise InputError(f"{name} must be {words}, got {shown}")


def check_text(text: str, name: str) -> bytes:
    """Text in UTF-8. Raises InputError for half of a surrogate pair, as JSON may hold."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} has half of a surrogate pair, {text[error.start]!r} at character "
            f"{error.start}, which no file or model can hold; replace it, by U+FFFD say"
        ) from None


def check_texts(value: object, name: str) -> None:
    """The same for all texts in what was given: lists and mappings however deep, and their keys."""
    if not _may_be_text(type(value)):
        return
    stack: list[tuple[str, Any]] = [(name, value)]
    seen = set[int]()
    while stack:
        place, each = stack.pop()
        if isinstance(each, str):
            if not each.isascii():
                check_text(each, place)
        elif _holds_texts(type(each)) and id(each) not in seen:
            seen.add(id(each))
            if isinstance(each, Mapping):
                stack += [(f"{place}: a key", key) for key in each]
                stack += [(f"{place}[{key!r:.40}]", inner) for key, inner in each.items()]
            elif any(map(_may_be_text, set(map(type, each)))):  # not of, say, many tokens
                stack += [(f"{place}[{i}]", inner) for i, inner in enumerate(each)]


def _is_any_of(*kinds: type) -> Callable[[type], bool]:
    return functools.lru_cache(256)(lambda kind: issubclass(kind, kinds))  # Mapping's is slow


_holds_texts: Final = _is_any_of(list, tuple, Mapping)
_may_be_text: Final = _is_any_of(str, list, tuple, Mapping)


def is_text(value: object) -> bool:
    """Whether it is text, and UTF-8 can write it."""
    try:
        return isinstance(value, str) and (value.isascii() or value.encode() is not None)
    except UnicodeEncodeError:
        return False


def check_names(given: Iterable[str], known: Mapping[str, str], what: str) -> None:
    """Raises InputError for a keyword that `what` does not have; each of those that are `known` is
    of a record, or "" for the call's own.
    """
    for name in given:
        if name in known:
            continue
        from difflib import get_close_matches

        package = sys.modules["alora_gguf"]
        records = [r for r in _RECORDS if name in getattr(package, r).__dataclass_fields__]
        near = get_close_matches(name, known, 1)
        if records:
            hint = f"it is a field of {records[0]}"
        elif near:
            record = known[near[0]]
            hint = f"did you mean {near[0]!r}{record and f', of {record}'}?"
        else:
            groups = {r: [each for each in known if known[each] == r] for r in known.values()}
            listed = (f"{r and f'those of {r}: '}{', '.join(groups[r])}" for r in groups)
            hint = f"there are {'; '.join(listed)}"
        raise InputError(f"{what} has no argument {name!r}; {hint}")


def checked(target: _T) -> _T:
    """A public function, a record, or a class with its public methods and setters, that raises
    InputError for arguments which are not of the kind that their annotations say, or unknown.
    """
    if not isinstance(target, type):
        return cast(_T, _checked_function(target))
    for name, member in list(vars(target).items()):
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(member, property) and member.fset is not None:
            setattr(target, name, member.setter(_checked_function(member.fset)))
        elif isinstance(member, (classmethod, staticmethod)):
            setattr(target, name, type(member)(_checked_function(member.__func__)))
        elif inspect.isfunction(member):
            setattr(target, name, _checked_function(member))
    return target


def _checked_function(function: Any) -> Any:
    tests: dict[str, tuple[_Test, str] | None] = {}
    takes_all = False
    label = function.__qualname__.removesuffix(".__init__") + "()"
    code = function.__code__
    n_bound = code.co_varnames[:1] in (("self",), ("cls",))
    n_places = sys.maxsize if code.co_flags & inspect.CO_VARARGS else code.co_argcount

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal tests, takes_all
        if len(args) <= n_bound and not kwargs:  # nothing was given
            return function(*args)
        if not tests:  # at the first call: by then all that annotations name is there
            parameters = inspect.signature(function).parameters.values()
            takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
            tests = {each.name: _test_for(each, function.__globals__) for each in parameters}
        if len(args) > n_places:
            raise InputError(
                f"{label} got {args[n_places]!r:.{_SHOWN}} without a name; give it as one of "
                f"{', '.join(f'{name}=' for name in [*tests][n_places:])}"
            )
        if not takes_all and not kwargs.keys() <= tests.keys():
            check_names(kwargs, {name: "" for name in tests if name != "self"}, label)
        for name, value in (*zip(tests, args, strict=False), *kwargs.items()):
            test = tests.get(name)
            if test is not None and not test[0](value):
                check_kind(value, f"{label}: {name}", *test)
            if _holds_texts(type(value)) and len(value):
                check_texts(value, f"{label}: {name}")
        return function(*args, **kwargs)

    return call


def _test_for(parameter: inspect.Parameter, names: dict[str, Any]) -> tuple[_Test, str] | None:
    """What tells whether a value is of a kind, and what the kind is in words; None if anything may
    be given, or the annotation names what is private and there for type checkers only.
    """
    annotation: Any = parameter.annotation
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or annotation in (
        parameter.empty,
        *_NUMBERS,
    ):
        return None
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, names, _Names(names))  # noqa: S307 (our own source)
        except NameError:
            return None
    tests, words = zip(*map(_alternative, _alternatives(annotation)), strict=True)
    words = tuple(dict.fromkeys(words))
    said = ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]
    return (tests[0] if len(tests) == 1 else lambda value: any(t(value) for t in tests)), said


class _Names(dict[str, Any]):
    """What annotations name: a module's own names, and public ones, loaded if need be."""

    def __missing__(self, name: str) -> Any:
        package = sys.modules["alora_gguf"]
        if name not in package.__all__:
            raise KeyError(name)
        return getattr(package, name)


def _alternatives(kind: Any) -> Iterator[Any]:
    if typing.get_origin(kind) in (Union, types.UnionType):
        for each in typing.get_args(kind):
            yield from _alternatives(each)
    else:
        yield kind


def _alternative(kind: Any) -> tuple[_Test, str]:
    base: Any = typing.get_origin(kind) or kind
    if base is Annotated:
        number, within = typing.get_args(kind)
        return cast(Within, within).test(number)
    if base is Literal:
        allowed = typing.get_args(kind)
        words = "one of " + ", ".join(map(str, allowed))
        return (lambda value: isinstance(value, (str, type(None))) and value in allowed), words
    name = getattr(base, "__name__", str(base))
    words = _WORDS.get(base) or ("an " if name[:1] in "AEIOU" else "a ") + name
    protocol = getattr(base, "_is_protocol", False)  # what it has to do, not what it is
    if base is Any or base is object or protocol or isinstance(base, TypeVar):
        return (lambda _: True), words
    if base in (int, float):
        return _is_number(base), words
    if base is str:
        return is_text, words
    if base is Callable:
        return callable, words
    if base in (Sequence, Iterable):  # arrays too; a mapping or a string is one by accident
        wanted = ("__len__", "__getitem__") if base is Sequence else ("__iter__",)
        others = (str, bytes, bytearray, Mapping, type)
        return (
            lambda value: not isinstance(value, others) and all(hasattr(value, w) for w in wanted)
        ), words
    return (lambda value: isinstance(value, base)), words


def _is_number(kind: type) -> _Test:
    kinds = int if kind is int else (int, float)
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool)


# Signals -----------------------------------------------------------------------------------------
#
# Python runs handlers between any two instructions of the main thread. One that raises between
# taking a sequence and noting that it was taken, say, would leave cells that nobody gives back.

_NAMES: Final = ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGBREAK")
_SIGNALS: Final = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
_PATIENCE: Final = 2.0  # seconds; who presses Ctrl-C again after that means it
_METHODS: Final = ("__init__", "__next__", "__exit__")

# signal's own turn numbers into enums and back, which takes as long as all the rest here
_get: Final = _signal.getsignal
_set: Final = _signal.signal


class _Deferred:
    """Around what must not end half-way; may be nested, and does nothing on other threads than the
    main one, which alone has signals.
    """

    def __init__(self) -> None:
        self.depth = 0
        self._keeper = self._keep  # one object, to be told by `is`
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._known: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._pending: list[int] = []
        self._since = 0.0

    def _keep(self, number: int, frame: FrameType | None) -> None:
        if self.depth == 0:  # who took ours for the program's amid a call has set it again since
            handler = self._known.get(number, signal.default_int_handler)
            _set(number, handler)
            handler(number, frame)
            return
        now = time.monotonic()
        if not self._pending:
            self._since = now
        elif now > self._since + _PATIENCE:
            self._handlers[number](number, frame)
        self._pending.append(number)

    def __enter__(self) -> None:
        if not _is_main():
            return
        if self.depth == 0:
            self._pending, self._handlers = [], {}
            for number in _SIGNALS:
                handler = _get(number)
                if handler is self._keeper:  # as above
                    handler = self._known.get(number, signal.default_int_handler)
                if callable(handler):
                    self._handlers[number] = self._known[number] = handler
                    _set(number, self._keeper)
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        if not _is_main():
            return
        self.depth -= 1
        if self.depth == 0:
            self.give_back()
            if self._pending:
                self.check()

    def check(self) -> None:
        """Hands the signals that came to their handlers."""
        while self._pending and _is_main():
            number = self._pending.pop(0)
            self._handlers[number](number, None)

    def pending(self) -> bool:
        """Whether check() would call a handler."""
        return bool(self._pending) and _is_main()

    def give_back(self) -> None:
        """Signals reach their handlers at once again."""
        for number, handler in self._handlers.items():
            if _get(number) is self._keeper:  # else the program has set another one meanwhile
                _set(number, handler)

    def take(self) -> None:
        """Undoes give_back()."""
        for number, handler in self._handlers.items():
            if _get(number) == handler:
                _set(number, self._keeper)


class _Allowed:
    """Around a callback of the program's, amid a deferred call: it may be interrupted anywhere."""

    def __enter__(self) -> None:
        if deferred.depth and _is_main():
            deferred.check()
            deferred.give_back()

    def __exit__(self, *_: object) -> None:
        if deferred.depth and _is_main():
            deferred.take()


class _Main:
    thread = threading.main_thread().ident


if hasattr(os, "register_at_fork"):  # the thread that forks is the child's main one
    os.register_at_fork(after_in_child=lambda: setattr(_Main, "thread", threading.get_ident()))


def _is_main() -> bool:
    return threading.get_ident() == _Main.thread


deferred: Final = _Deferred()
allowed: Final = _Allowed()
pending: Final = deferred.pending
check_interrupts: Final = deferred.check
"""Where a call can end: hands the signals that came to their handlers, which may raise."""


def uninterrupted(target: _T) -> _T:
    """A function, or a class with its public methods, inside which signals wait for
    check_interrupts(), or the end.
    """
    if not isinstance(target, type):
        return cast(_T, _wrapped(cast("Callable[..., Any]", target)))
    for name, member in list(vars(target).items()):
        if inspect.isfunction(member) and (not name.startswith("_") or name in _METHODS):
            setattr(target, name, _wrapped(member))
    return cast(_T, target)


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if deferred.depth:  # inside of another one; on other threads signals are none of ours
            return function(*args, **kwargs)
        with deferred:
            return function(*args, **kwargs)

    return call
