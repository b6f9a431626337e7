"""What can be asked about a state: yes or no, one of several options, a level of a scale; as
records of ours and as the mappings of TypeSafe's System One.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, ClassVar, Final, TypeAlias, TypeVar

from alora_gguf._calls import Within, check_texts, checked
from alora_gguf.errors import FieldError, InputError, did_you_mean
from alora_gguf.options import (
    AdapterLike,
    FrozenDict,
    IntrinsicCall,
    Scale,
    check_adapter,
    check_number,
)

_T = TypeVar("_T")

MAX_QUESTIONS: Final = 400
"""Of one call: as many as OpenAI's Decisions take; all their forks are planned before the first."""
MAX_OPTIONS: Final = 255
"""Of a choice: as many as System One and OpenAI's Decisions take."""
MIN_LEVELS: Final = 2
MAX_LEVELS: Final = 10
"""Of a score: as many as System One takes, and as there are digits to answer with."""
MAX_TEMPERATURE: Final = 1000.0  # beyond it any answer is even

MAX_DEPTH: Final = 100
"""Arrays and objects in each other, of what is given as JSON: templates and encoders recurse."""

Content: TypeAlias = str | Mapping[str, Any] | Sequence[Any]
"""What instructions and descriptions say: text, or what JSON can hold, which is shown as JSON."""
Temperature = Annotated[float, Within(1e-3, MAX_TEMPERATURE)]


def content_text(value: object, *path: str | int) -> str:
    """Text, or an object or array as JSON. Raises FieldError, which calls it `path`."""
    if not isinstance(value, (str, Mapping, list, tuple)):
        problem = f"is {kind_of(value)}, expected text, an object or an array"
        raise FieldError(path, problem)
    try:
        check_texts(value, "it")
        if isinstance(value, str):
            return value
        if _depth(value) > MAX_DEPTH:
            raise FieldError(path, f"has more than {MAX_DEPTH} arrays and objects in each other")
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, FieldError):
            raise
        raise FieldError(path, f"is not what JSON can hold: {error}") from None


def _depth(value: object) -> int:
    """How many arrays and objects are in each other, as far as MAX_DEPTH."""
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        parts = [each for each in level if isinstance(each, (Mapping, list, tuple))]
        depth += bool(parts)
        level = [
            inner
            for each in parts
            for inner in (each.values() if isinstance(each, Mapping) else each)
        ]
    return depth


def _plain(value: object) -> object:
    """What json does not know of, as something that it does."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def kind_of(value: object) -> str:
    """A wrong value's kind, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (str, list, tuple)):
        return "text" if isinstance(value, str) else "an array"
    return f"of the kind {type(value).__name__}"


def counted(n: int, thing: str) -> str:
    """How many there are, as it is said."""
    return f"{n or 'no'} {thing}{'s' * (n != 1)}"


@dataclass(frozen=True)
class _Asked:
    """What all questions have in common."""

    type: ClassVar[str] = ""

    instructions: Content | None = None
    _: KW_ONLY
    adapter: AdapterLike | None = None
    scale: Scale = 1.0
    temperature: Temperature | None = None

    def _check(self) -> None:
        object.__setattr__(self, "adapter", check_adapter(self.adapter))
        if self.temperature is not None:
            check_number(self.temperature, "temperature", 1e-3, MAX_TEMPERATURE)
        if self.instructions is not None:
            text = content_text(self.instructions, "instructions")
            if not (text.strip() and self.instructions):
                raise FieldError(
                    ("instructions",),
                    "is empty, expected what is to be decided; leave it out where the criteria say "
                    "it",
                )

    @property
    def asks(self) -> str:
        """The instructions as text; "" if there are none."""
        return "" if self.instructions is None else content_text(self.instructions, "instructions")


@checked
@dataclass(frozen=True)
class Predicate(_Asked):
    """A question that is answered with yes or no, or a statement that holds or does not; System
    One's "noul", OpenAI's "predicate".

    instructions  what is asked; None where `true` or `false` says it
    true, false   what counts as yes, and as no
    adapter       which one answers, by name, or several, names mapped to scales; None is the base.
                  An activated LoRA and a vector see the base's cells of the state, a plain LoRA
                  reads the state for itself
    scale         multiplies the adapter's own alpha/rank, or all scales of a mapping
    temperature   divides the options' log-probabilities; None: that of the call, or of the files

    Raises InputError for what nothing is asked by.
    """

    type: ClassVar[str] = "noul"

    true: Content | None = None
    false: Content | None = None

    def __post_init__(self) -> None:
        self._check()
        if self.instructions is None and self.true is None and self.false is None:
            raise FieldError(
                ("instructions",), "is missing, as are criteria; one of them says what to decide"
            )
        for name in ("true", "false"):
            if getattr(self, name) is not None:
                content_text(getattr(self, name), "criteria", name)

    @property
    def options(self) -> tuple[str, ...]:
        """The criteria's names."""
        return "true", "false"


@checked
@dataclass(frozen=True)
class Choice(_Asked):
    """A question that is answered with one of up to MAX_OPTIONS options.

    options  what can be answered, each with when it applies, or None where its name says it. The
             order does not matter, nor does it show in the answer; neither do blanks around them.
             True and False are options other than "true" and "false"

    The other fields are Predicate's. Raises InputError for none or too many, or one that says
    nothing.
    """

    type: ClassVar[str] = "choice"

    options: Mapping[str | bool, Content | None] | Sequence[str] = ()

    def __post_init__(self) -> None:
        self._check()
        given, where = self.options, ("criteria",)
        options = given if isinstance(given, Mapping) else dict.fromkeys(given)
        n = len(given)
        if not 1 <= n <= MAX_OPTIONS:
            raise FieldError(where, f"has {counted(n, 'option')}, expected 1 to {MAX_OPTIONS}")
        if len(options) < n:
            raise FieldError(where, "has an option twice, expected each once")
        for name, description in options.items():
            if not isinstance(name, (str, bool)):
                raise FieldError(where, f"has the option {name!r}, expected text")
            text = content_text(option_text(name), *where)
            said = "" if description is None else content_text(description, *where, text)
            if not (text.strip() or said.strip()):
                raise FieldError(where, f"has an option {name!r} that says nothing; name it")
        object.__setattr__(self, "options", FrozenDict(options))


@checked
@dataclass(frozen=True)
class Score(_Asked):
    """A question that is answered with a level of a scale: MIN_LEVELS to MAX_LEVELS of them.

    levels  what each says, from 0 on upwards

    The other fields are Predicate's. Raises InputError.
    """

    type: ClassVar[str] = "score"

    levels: Sequence[Content] = ()

    def __post_init__(self) -> None:
        self._check()
        n = len(self.levels)
        if not MIN_LEVELS <= n <= MAX_LEVELS:
            wanted = f"expected {MIN_LEVELS} to {MAX_LEVELS}"
            raise FieldError(("criteria",), f"has {counted(n, 'level')}, {wanted}")
        for i, level in enumerate(self.levels):
            if not content_text(level, "criteria", i).strip():
                raise FieldError(("criteria", i), "is empty, expected what the level says")
        object.__setattr__(self, "levels", tuple(self.levels))


Question: TypeAlias = Predicate | Choice | Score
"""A typed question."""
Asked: TypeAlias = Predicate | Choice | Score | IntrinsicCall | Mapping[str, Any]
"""A question: a record, System One's mapping, or an intrinsic whose contract is a decision."""


def option_text(name: str | bool) -> str:
    """An option as it is shown."""
    return name if isinstance(name, str) else str(name).lower()


def check_temperatures(given: Mapping[str, float] | None) -> dict[str, float]:
    """A call's temperatures by type of question. Raises InputError."""
    for kind, value in (given or {}).items():
        if kind not in TYPES:
            raise InputError(f"temperature has {kind!r:.40}, expected {', '.join(TYPES)}")
        check_number(value, f"temperature of {kind}", 1e-3, MAX_TEMPERATURE)
    return dict(given or {})


# System One's mappings ---------------------------------------------------------------------------

_COMMON: Final = ("type", "instructions", "adapter", "scale", "temperature")
_TYPED: Final = (*_COMMON, "criteria")
_INTRINSIC: Final = ("intrinsic", "type", "arguments", "scale")
TYPES: Final = ("noul", "choice", "score")
EXAMPLE: Final = 'a question such as {"type": "noul", "instructions": "Is it urgent?"}'


def read_questions(
    questions: Mapping[str, Asked], path: Sequence[str | int] = ("questions",)
) -> dict[str, Question | IntrinsicCall]:
    """The records that questions are, by their names. Raises FieldError, with `path` before the
    name of the one that is wrong.
    """
    if not isinstance(questions, Mapping):
        raise FieldError(path, f"is {kind_of(questions)}, expected an object of questions by name")
    n = len(questions)
    if not 1 <= n <= MAX_QUESTIONS:
        size = f"has {n}" if n else "is empty"
        raise FieldError(path, f"{size}, expected 1 to {MAX_QUESTIONS} questions")
    found = dict[str, Question | IntrinsicCall]()
    for name, question in questions.items():
        if name == "" or type(name) is not str:
            raise FieldError(path, f"has the name {name!r}, expected text that is not empty")
        content_text(name, *path)
        found[name] = read_question(question, (*path, name))
    return found


def read_question(question: object, path: Sequence[str | int]) -> Question | IntrinsicCall:
    """The record that a question is. Raises FieldError."""
    if isinstance(question, (Predicate, Choice, Score, IntrinsicCall)):
        return question
    if not isinstance(question, Mapping):
        raise FieldError(path, f"is {kind_of(question)}, expected {EXAMPLE}")
    if question.get("intrinsic") is not None:
        return _intrinsic(question, path)
    kind = question.get("type")
    if kind is None:
        raise FieldError((*path, "type"), f"is missing, expected one of {', '.join(TYPES)}")
    if kind not in TYPES:
        shown = f"{kind!r:.40}"
        raise FieldError((*path, "type"), f"is {shown}, expected one of {', '.join(TYPES)}")
    return made(path, lambda: _typed(kind, question))


def made(
    path: Sequence[str | int], make: Callable[[], _T], criteria: Sequence[str] = ("criteria",)
) -> _T:
    """What `make` makes of a mapping at `path`; what it refuses is a FieldError from there on. The
    mapping calls `criteria` what records do.
    """
    try:
        return make()
    except FieldError as error:
        steps, problem = error.path, error.problem
    except InputError as error:
        text = str(error).split("(): ", 1)[-1]  # of which call it was, nobody asked
        field, _, problem = text.partition(" ")
        name = field.partition("[")[0]
        inner = name in ("true", "false", "options", "levels")
        steps = ("criteria",) if inner else (name,) if name in (*_TYPED, *_INTRINSIC) else ()
        problem = problem if steps[-1:] == (field,) else text
    steps = (*criteria, *steps[1:]) if steps[:1] == ("criteria",) else steps
    raise FieldError((*path, *steps), problem)


def check_known(given: Mapping[str, Any], names: Sequence[str], *path: str | int) -> None:
    """Raises FieldError for a field that is none of those that there are."""
    for name in given:
        if name not in names:
            hint = did_you_mean(name, names)
            raise FieldError(path, f"has no field {name!r:.40}, only {', '.join(names)}{hint}")


def _typed(kind: str, question: Mapping[str, Any]) -> Question:
    check_known(question, _TYPED)
    criteria, where = question.get("criteria"), ("criteria",)
    common: dict[str, Any] = {
        name: question[name] for name in ("adapter", "temperature") if name in question
    }
    if question.get("scale") is not None:
        common["scale"] = question["scale"]
    instructions = question.get("instructions")
    if kind == "noul":
        criteria = {} if criteria is None else criteria
        if not isinstance(criteria, Mapping):
            raise FieldError(where, f"is {kind_of(criteria)}, expected an object with true, false")
        check_known(criteria, ("true", "false"), *where)
        return Predicate(
            instructions, true=criteria.get("true"), false=criteria.get("false"), **common
        )
    if criteria is None:
        raise FieldError(where, "is missing, expected what can be answered")
    if kind == "choice":
        if not isinstance(criteria, Mapping):
            wanted = "an object of options, each with a description or null"
            raise FieldError(where, f"is {kind_of(criteria)}, expected {wanted}")
        return Choice(instructions, options=criteria, **common)
    if not isinstance(criteria, (list, tuple)):
        raise FieldError(
            where, f"is {kind_of(criteria)}, expected an array of levels, lowest first"
        )
    return Score(instructions, levels=criteria, **common)


def _intrinsic(question: Mapping[str, Any], path: Sequence[str | int]) -> IntrinsicCall:
    check_known(question, _INTRINSIC, *path)
    name, arguments = question["intrinsic"], question.get("arguments")
    if not isinstance(name, str):
        raise FieldError((*path, "intrinsic"), f"is {kind_of(name)}, expected an adapter's name")
    if arguments is not None and not isinstance(arguments, Mapping):
        raise FieldError((*path, "arguments"), f"is {kind_of(arguments)}, expected an object")
    scale = question.get("scale")
    scales = {} if scale is None else {"scale": scale}
    return made(path, lambda: IntrinsicCall(name, arguments or {}, **scales))
