"""Arguments of the wrong kind are refused by name: here, by the annotations, for every public call.

What kind a thing is, not what is in it: who takes a sequence of tokens checks the tokens.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin

from .errors import InputError

_T = TypeVar("_T")
_Test = Callable[[object], bool]
_NUMBERS: Final = ("int", "float", "int | None", "float | None")  # whose ranges say more
_SHOWN: Final = 80  # characters of a wrong value in a message
_WORDS: Final[dict[object, str]] = {
    str: "a string", int: "an integer", float: "a number", bool: "True or False",
    type(None): "None", os.PathLike: "a path", Mapping: "a mapping", Sequence: "a list",
    Iterable: "a list", Callable: "a function",
}  # fmt: skip


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


def check_names(given: Iterable[str], known: Mapping[str, str], what: str) -> None:
    """Raises InputError for a keyword that is not among `known`, each with the record it is of."""
    for name in given:
        if name in known:
            continue
        from difflib import get_close_matches

        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}, of {known[near[0]]}?" if near else ""
        options = "; ".join(
            f"those of {record}: {', '.join(each for each in known if known[each] == record)}"
            for record in dict.fromkeys(known.values())
        )
        raise InputError(f"{what} has no option {name!r}{hint or f'; there are {options}'}")


def _checked_function(function: Any) -> Any:
    tests: dict[str, tuple[_Test, str]] | None = None
    positions: tuple[str, ...] = ()
    takes_all = False
    label = function.__qualname__.removesuffix(".__init__") + "()"

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal tests, positions, takes_all
        if tests is None:  # at the first call: by then all that annotations name is there
            signature = inspect.signature(function)
            positions = tuple(signature.parameters)
            takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
            tests = dict(_tests(function, signature))
        for name in kwargs:
            if not takes_all and name not in positions:
                raise InputError(f"{label} has no argument {name!r}{_hint(name, positions)}")
        for name, value in (*zip(positions, args, strict=False), *kwargs.items()):
            test = tests.get(name)
            if test is not None and not test[0](value):
                raise _wrong(f"{label}: {name}", test[1], value)
        return function(*args, **kwargs)

    return call


def _hint(name: str, known: Sequence[str]) -> str:
    """What may have been meant by a keyword that there is not."""
    package = sys.modules["alora_gguf"]
    for record in ("Sampling", "GenerateOptions", "ContextOptions", "IntrinsicCall"):
        if name in getattr(package, record).__dataclass_fields__:
            return f"; it is a field of {record}"
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(known[1:])}"


def _tests(function: Any, signature: inspect.Signature) -> Iterator[tuple[str, tuple[_Test, str]]]:
    for name, parameter in signature.parameters.items():
        single = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if single and parameter.annotation is not parameter.empty:
            test = _test_for(parameter.annotation, function.__globals__)
            if test is not None and parameter.annotation not in _NUMBERS:
                yield name, test


def _test_for(annotation: Any, names: dict[str, Any]) -> tuple[_Test, str] | None:
    """What tells whether a value is of a kind, and what the kind is in words; None if the
    annotation names what is private and there for type checkers only.
    """
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, names, _Names(names))  # noqa: S307 (our own source)
        except NameError:
            return None
    kinds = tuple(_alternatives(annotation))
    words = list(dict.fromkeys(_in_words(kind) for kind in kinds))
    said = ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]
    tests = tuple(map(_is, kinds))
    return (lambda value: any(test(value) for test in tests)), said


class _Names(dict[str, Any]):
    """What annotations name: a module's own names, and public ones, loaded if need be."""

    def __missing__(self, name: str) -> Any:
        package = sys.modules["alora_gguf"]
        if name not in package.__all__:
            raise KeyError(name)
        return getattr(package, name)


def _alternatives(kind: Any) -> Iterator[Any]:
    if get_origin(kind) in (Union, types.UnionType):
        for each in get_args(kind):
            yield from _alternatives(each)
    else:
        yield kind


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    base = get_origin(kind) or kind
    name = getattr(base, "__name__", str(base))
    return _WORDS.get(base) or ("an " if name[:1] in "AEIOU" else "a ") + name


def _is(kind: Any) -> _Test:
    base: Any = get_origin(kind) or kind
    protocol = getattr(base, "_is_protocol", False)  # what it has to do, not what it is
    if kind is Any or kind is object or protocol or isinstance(kind, TypeVar):
        return lambda _: True
    if base is Literal:
        names = get_args(kind)
        return lambda value: isinstance(value, (str, type(None))) and value in names
    if base is float:
        return lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
    if base is int:
        return lambda value: isinstance(value, int) and not isinstance(value, bool)
    if base is Callable:
        return callable
    if base in (Sequence, Iterable):  # arrays too; a mapping or a string is one by accident
        wanted = ("__len__", "__getitem__") if base is Sequence else ("__iter__",)
        return lambda value: (
            not isinstance(value, (str, bytes, bytearray, Mapping))
            and not isinstance(value, type)
            and all(hasattr(value, name) for name in wanted)
        )
    return lambda value: isinstance(value, base)


def _wrong(what: str, words: str, value: object) -> InputError:
    shown = repr(value)
    if len(shown) > _SHOWN:
        shown = shown[:_SHOWN] + "…"
    return InputError(f"{what} must be {words}, got {shown}")
