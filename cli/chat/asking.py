"""What is asked at every turn, and how: which intrinsics, when, and which of them a reply has to
pass; asked while the reply begins.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from alora_gguf.cli.verdicts import Good, is_good, number_in

from alora_gguf import (
    AloraError,
    Barrier,
    CancelledError,
    CancelToken,
    Chat,
    InputError,
    IntrinsicCall,
    IntrinsicResult,
)
from alora_gguf.intrinsics import Contract

Place = Literal["question", "answer"]
Sign = Literal["", "!", "<", ">"]
_FORM: Final = re.compile(
    r"(?P<name>[^@<>!]+)(@(?P<place>question|answer))?((?P<sign>[<>])(?P<bound>.*)|(?P<good>!))?"
)


@dataclass(frozen=True, slots=True)
class Watched:
    """An intrinsic that is asked at every turn.

    place  about the user's question, while the reply begins; or about the answer
    sign   what makes it a guard, which the reply has to pass or is withheld: "!" if its verdict
           must be a good one, by its contract's `good` end, "<" or ">" if its number must be below
           or above `bound`
    """

    name: str
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

    def __str__(self) -> str:
        bound = f"{self.bound:g}" if self.sign in ("<", ">") else ""
        return f"{self.name}{self.sign}{bound}"


def in_words(watched: Sequence[Watched]) -> str:
    """What is asked when."""
    groups = {
        place: " ".join(str(each) for each in watched if each.place == place)
        for place in ("question", "answer")
    }
    parts = ", ".join(f"{names} at each {place}" for place, names in groups.items() if names)
    return f"watching {parts or 'nothing'}"


def parse_all(texts: Sequence[str], known: Mapping[str, Contract]) -> list[Watched]:
    """parse_watched() of each. Raises InputError, also for one that is there twice."""
    found: list[Watched] = []
    for text in texts:
        watched = parse_watched(text, known)
        if any((each.name, each.place) == (watched.name, watched.place) for each in found):
            raise InputError(
                f"'{text}': '{watched.name}' is asked about the {watched.place} already; name it "
                "once"
            )
        found.append(watched)
    return found


def parse_watched(text: str, known: Mapping[str, Contract]) -> Watched:
    """NAME, NAME@question, NAME@answer, or a guard: NAME! where a good verdict is needed, NAME<0.5
    or NAME>0.5 for a number. Raises InputError.
    """
    match = _FORM.fullmatch(text)
    if match is None or match["name"] not in known:
        raise InputError(
            f"'{text}': expected NAME, NAME@question, NAME@answer or a guard such as NAME! or "
            f"NAME<0.5, with NAME one of the intrinsics that are loaded: {', '.join(known)}"
        )
    name, contract = match["name"], known[match["name"]]
    place = match["place"] or contract.judges
    if not (match["sign"] or match["good"]):
        return Watched(name, "question" if place == "question" else "answer")
    if place == "answer":
        raise InputError(
            f"'{text}': a guard is asked about the question, before the reply is shown, and this "
            f"one judges the answer; ask it afterwards: {name}@answer"
        )
    if match["sign"]:
        return Watched(name, "question", "<" if match["sign"] == "<" else ">", _bound(text, match))
    if contract.good is None:
        raise InputError(
            f"'{text}': its contract does not say which verdicts are good; write {name}<0.5 if low "
            f"numbers are, {name}>0.5 if high ones are, or add to the response_format of its "
            'io.yaml "x-alora": {"judges": "question", "good": "low"} (or "high")'
        )
    return Watched(name, "question", "!", good=contract.good)


def _bound(text: str, match: re.Match[str]) -> float:
    try:
        bound = float(match["bound"])
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise InputError(
            f"'{text}': expected a number behind {match['sign']}, found '{match['bound']}'"
        )
    return bound


@dataclass(frozen=True, slots=True)
class Failed:
    """An intrinsic that could not be asked, and why."""

    name: str
    error: AloraError


Verdict = IntrinsicResult | Failed


def ask_each(
    chat: Chat, calls: Sequence[IntrinsicCall], cancel: CancelToken | None
) -> list[Verdict]:
    """Asks all in one batch; one that cannot be asked does not keep the others from it. Raises
    CancelledError.
    """
    if len(calls) > 1:
        try:
            return list(chat.invoke_many(calls, cancel=cancel))
        except CancelledError:
            raise
        except AloraError:
            pass  # one of them is at fault: each alone
    return [_ask_one(chat, call, cancel) for call in calls]


def _ask_one(chat: Chat, call: IntrinsicCall, cancel: CancelToken | None) -> Verdict:
    try:
        return chat.invoke(call, cancel=cancel)
    except CancelledError:
        raise
    except AloraError as error:
        return Failed(call.name, error)


def unasked(watched: Sequence[Watched]) -> list[Verdict]:
    """What there is of those that were stopped before they answered."""
    return [Failed(each.name, CancelledError("stopped before it answered")) for each in watched]


class Asking:
    """Watching intrinsics that are asked about what the user said while the reply begins: guards in
    one thread, so that they keep it waiting no longer than they need, and the others in another.
    """

    def __init__(self, chat: Chat, watched: Sequence[Watched], cancel: CancelToken) -> None:
        """`chat` ends with what the user said, and may go on. The reply's first decode has to
        follow: all of these share a batch.
        """
        self._watched = watched
        self.guards = [each for each in watched if each.is_guard]
        groups = [self.guards, [each for each in watched if not each.is_guard]]
        self._gate = chat.model.barrier(sum(map(bool, groups)) + 1, cancel=cancel)
        self._calls: list[_Call] = []
        try:
            for group in filter(None, groups):
                self._calls.append(_Call(chat.fork(), group, cancel, self._gate))
            for call in self._calls:
                call.start()
        except BaseException:
            self._gate.open()
            for call in self._calls:
                call.chat.close()
            raise

    def reply_begins(self) -> None:
        """Nobody has to wait for the reply any more, begun or failed."""
        self._gate.open()

    @property
    def guards_spoke(self) -> bool:
        """Whether all guards have answered, or failed to."""
        return not (self.guards and self._calls[0].is_alive())

    def stopped_by(self) -> Verdict | None:
        """The first guard's verdict that lets no reply pass, once all have spoken. Raises
        CancelledError.
        """
        verdicts = self._calls[0].wait() if self.guards else []
        for guard, verdict in zip(self.guards, verdicts, strict=True):
            if not _lets_pass(guard, verdict):
                return verdict
        return None

    def verdicts(self) -> tuple[Verdict, ...]:
        """All of them in order; of others than guards that were cancelled, that they were."""
        found: dict[int, Verdict] = {}
        for call in self._calls:
            try:
                verdicts = call.wait()
            except CancelledError:
                verdicts = unasked(call.watched)
            found.update(zip(map(id, call.watched), verdicts, strict=True))
        return tuple(found[id(each)] for each in self._watched)

    def join(self) -> None:
        """Waits for the end, whatever it is."""
        self._gate.open()
        for call in self._calls:
            call.join()


def _lets_pass(guard: Watched, verdict: Verdict) -> bool:
    if isinstance(verdict, Failed) or verdict.error is not None:
        return False
    return guard.passes(verdict.value)


class _Call(threading.Thread):
    """Asks a group of intrinsics about a chat, which is closed then."""

    def __init__(
        self, chat: Chat, watched: Sequence[Watched], cancel: CancelToken, gate: Barrier
    ) -> None:
        super().__init__(daemon=True)
        self.chat, self.watched = chat, watched
        self._cancel, self._gate = cancel, gate
        self._found: list[Verdict] | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        calls = [IntrinsicCall(each.name) for each in self.watched]
        try:
            self._found = ask_each(self.chat, calls, self._cancel)
        except BaseException as error:  # the one who waits raises it
            self._error = error
        finally:
            self._gate.leave()
            self.chat.close()

    def wait(self) -> list[Verdict]:
        """The answers. Raises what asking raised."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._found or []
