"""What is asked at every turn, and how: which intrinsics, when, and which of them a reply has to
pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from alora_gguf.cli.calls import Written, read_calls, written
from alora_gguf.cli.verdicts import Good, is_good, number_in, numbers_of

import alora_gguf as ag
from alora_gguf.errors import did_you_mean

Place = Literal["question", "answer"]
Sign = Literal["", "!", "<", ">"]
# behind the call
_REST: Final = re.compile(
    r"(@(?P<place>question|answer))?((?P<sign>[<>])(?P<bound>.*)|(?P<good>!))?"
)


@dataclass(frozen=True, slots=True)
class Watched:
    """An intrinsic that is asked at every turn.

    place  about the user's question, while the reply begins; or about the answer
    sign   what makes it a guard, which the reply has to pass or is withheld: "!" if its verdict
           must be a good one, by its contract's `good` end, "<" or ">" if its number must be below
           or above `bound`
    """

    call: ag.IntrinsicCall
    place: Place
    sign: Sign = ""
    bound: float = 0.0
    good: Good | None = None

    @property
    def is_guard(self) -> bool:
        """Whether a reply has to pass it."""
        return bool(self.sign)

    def passes(self, value: Any) -> bool:
        """Whether a guard's verdict lets a reply pass. One that says nothing does not."""
        if self.sign == "!":
            return is_good(value, self.good) is True
        number = number_in(value)
        if number is None:
            return False
        return number < self.bound if self.sign == "<" else number > self.bound

    @property
    def spec(self) -> str:
        """All of it as parse_all() reads it, whatever the contract says."""
        bound = repr(self.bound) if self.sign in ("<", ">") else ""
        return f"{written(self.call)}@{self.place}{self.sign}{bound}"

    @property
    def short(self) -> str:
        """Without its arguments."""
        bound = f"{self.bound:g}" if self.sign in ("<", ">") else ""
        return f"{self.call.label}{self.sign}{bound}"

    def __str__(self) -> str:
        return f"{written(self.call)}{self.short.removeprefix(self.call.label)}"


def in_words(watched: Sequence[Watched]) -> str:
    """What is asked when."""
    groups = {
        place: " ".join(str(each) for each in watched if each.place == place)
        for place in ("question", "answer")
    }
    parts = ", ".join(f"{names} at each {place}" for place, names in groups.items() if names)
    return f"watching {parts or 'nothing'}"


def no_longer(before: Sequence[Watched], now: Sequence[Watched]) -> Iterator[str]:
    """What is lost where those that were watched give way to others."""
    guards = {each.call.label for each in now if each.is_guard}
    asked = {(each.call.label, each.place) for each in now}
    lost = [each for each in before if each.is_guard and each.call.label not in guards]
    if lost:
        yield f"no longer guarded by {' '.join(written(each.call) for each in lost)}"
    gone = [each for each in before if (each.call.label, each.place) not in asked]
    if others := [str(each) for each in gone if not each.is_guard]:
        yield f"no longer watched: {' '.join(others)}"


def parse_all(text: str, known: Mapping[str, ag.Contract]) -> list[Watched]:
    """All that a text names. Raises InputError, also for one that is there twice."""
    found: list[Watched] = []
    for each in read_calls(text) or [Written(text, "")]:
        watched = _watched(each, known)
        for other in found:
            _check_apart(other, watched, each)
        found.append(watched)
    return found


def _check_apart(one: Watched, other: Watched, asked: Written) -> None:
    """Raises InputError where both would be told by one name; a call may be watched in both
    places.
    """
    if one.call.label != other.call.label or (one.call == other.call and one.place != other.place):
        return
    label, name = one.call.label, asked.name
    if one.call.name != name:
        problem = f"'{label}' is {written(one.call)} already; choose another alias"
    else:
        problem = (
            f"'{label}' is asked about the {one.place} already; name it once, or with other "
            f"arguments as ALIAS={name}(…)"
        )
    raise ag.InputError(f"'{asked.text}': {problem}")


def _watched(each: Written, known: Mapping[str, ag.Contract]) -> Watched:
    """CALL, CALL@question, CALL@answer, or a guard: CALL! where a good verdict is needed, CALL<0.5
    or CALL>0.5 for a number. Raises InputError.
    """
    text, name, match = each.text, each.name, _REST.fullmatch(each.rest)
    if match is None or name not in known:
        raise ag.InputError(
            f"'{text}': expected NAME, NAME@question, NAME@answer or a guard such as NAME! or "
            f"NAME<0.5, with NAME one of the intrinsics that are loaded: {', '.join(known)}"
            f"{'' if name in known else did_you_mean(name, known)}"
        )
    if each.alias in known and each.alias != name:
        raise ag.InputError(f"'{text}': '{each.alias}' is another intrinsic; choose another alias")
    contract = known[name]
    call, place = each.call(contract), match["place"] or contract.judges
    form = written(call)
    if not (match["sign"] or match["good"]):
        return Watched(call, "question" if place == "question" else "answer")
    if place == "answer":
        raise ag.InputError(
            f"'{text}': a guard is asked about the question, before the reply is shown, and this "
            f"one judges the answer; ask it afterwards: {form}@answer"
        )
    if (numbers := numbers_of(contract)) is None:
        raise ag.InputError(
            f"'{text}': a guard goes by a number, and none comes of {name}: by the response_format "
            f"of its contract it answers with a text or a list; watch it as {form}, or, where that "
            'text is yes or no, write so there: "enum": ["yes", "no"]'
        )
    if match["sign"]:
        bound = _bound(text, match, numbers)
        return Watched(call, "question", "<" if match["sign"] == "<" else ">", bound)
    if contract.good is None:
        raise ag.InputError(
            f"'{text}': its contract does not say which verdicts are good; write {form}<0.5 if low "
            f"numbers are, {form}>0.5 if high ones are, or add to the response_format of its "
            'io.yaml "x-alora": {"judges": "question", "good": "low"} (or "high")'
        )
    return Watched(call, "question", "!", good=contract.good)


def _bound(text: str, match: re.Match[str], numbers: tuple[float, float]) -> float:
    try:
        bound = float(match["bound"])
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise ag.InputError(
            f"'{text}': expected a number behind {match['sign']}, found '{match['bound']}'"
        )
    low, high = numbers
    all_pass, none_pass = high < bound, low >= bound
    if match["sign"] == ">":
        all_pass, none_pass = low > bound, high <= bound
    if all_pass or none_pass:
        raise ag.InputError(
            f"'{text}': its numbers are from {low:g} to {high:g}, by its contract, so that "
            f"{'every' if all_pass else 'no'} reply would pass; choose a bound between them"
        )
    return bound


@dataclass(frozen=True, slots=True)
class Failed:
    """An intrinsic that could not be asked, and why."""

    name: str
    error: ag.AloraError
    alias: str | None = None

    @property
    def label(self) -> str:
        """What to call it, as of a result."""
        return self.name if self.alias is None else self.alias


Verdict = ag.IntrinsicResult | Failed
Beside = tuple[Watched, Future[ag.IntrinsicResult]]
"""An intrinsic that is asked beside a reply, and what it will say."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user said, what came back, and what the watching intrinsics say of it.

    finish_reason  as of a reply; "full" if it was cut off because the cache is, "withheld" if a
                   guard did not let it pass: then nothing was said
    timings        of reading the user's words and of the reply, together
    withheld       that guard's verdict
    """

    user: str
    reply: str
    finish_reason: str
    timings: ag.Timings
    verdicts: tuple[Verdict, ...] = ()
    withheld: Verdict | None = None


def ask_each(
    chat: ag.Chat, calls: Sequence[ag.IntrinsicCall], cancel: ag.CancelToken | None
) -> list[Verdict]:
    """Asks all in one batch; one that cannot be asked does not keep the others from it. Raises
    CancelledError.
    """
    if len(calls) > 1:
        try:
            return list(chat.invoke_many(calls, cancel=cancel))
        except ag.CancelledError:
            raise
        except ag.AloraError:
            pass  # one of them is at fault: each alone
    return [answered(each, partial(chat.invoke, each, cancel=cancel)) for each in calls]


def answered(call: ag.IntrinsicCall, ask: Callable[[], ag.IntrinsicResult]) -> Verdict:
    """What `ask` returns, or that it failed. Raises CancelledError."""
    try:
        return ask()
    except ag.CancelledError:
        raise
    except ag.AloraError as error:
        return Failed(call.name, error, call.alias)


def unasked(watched: Sequence[Watched]) -> list[Verdict]:
    """What there is of those that were stopped before they answered."""
    stopped = ag.CancelledError("stopped before it answered")
    return [Failed(each.call.name, stopped, each.call.alias) for each in watched]


def withheld_by(guards: Sequence[Beside]) -> Verdict | None:
    """The first guard's verdict that lets no reply pass. Raises CancelledError."""
    for guard, future in guards:
        verdict = answered(guard.call, future.result)
        if verdict.error is not None or not guard.passes(verdict.value):
            return verdict
    return None
