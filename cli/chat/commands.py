"""What a line that begins with a slash does."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from alora_gguf.cli.calls import Written, read_arguments, read_call, read_calls, usage
from alora_gguf.cli.options import named_contract, named_scales
from alora_gguf.cli.render import duration, plural, size_text, whole

import alora_gguf as ag

from . import steering, tables
from .arguments import (
    SETTINGS,
    changed_options,
    file_path,
    read_document,
    shown_setting,
    split_adapter,
)
from .asking import Watched, in_words, no_longer, parse_all
from .room import beyond
from .talk import Talk, contract_of, intrinsics_of
from .view import View

if TYPE_CHECKING:
    from .lines import Lines

_WATCHED: Final = "alora_gguf.watched"  # among a saved conversation's notes
_STEERING: Final = "alora_gguf.steering"
_Run = TypeVar("_Run", bound="Callable[..., str | None]")


class Command(NamedTuple):
    """How a command is written, with what may be left out in brackets; what /help says of it; what
    it does. It may return a text to be said instead of the last message.
    """

    usage: str
    help: str
    run: Callable[[Commands, str], str | None]


COMMANDS: Final[dict[str, Command]] = {}
_ALSO: Final = {"new": "clear", "?": "help"}


def _command(usage: str, what: str) -> Callable[[_Run], _Run]:
    """Makes a method of Commands a command."""

    def register(run: _Run) -> _Run:
        COMMANDS[usage.split(maxsplit=1)[0][1:]] = Command(usage, what, run)
        return run

    return register


class Commands:
    """Runs commands on a talk and shows what they say."""

    def __init__(self, talk: Talk, view: View, lines: Lines) -> None:
        self._talk, self._view, self._lines = talk, view, lines
        self._cancel = ag.CancelToken()
        self._told: set[str] = set()  # intrinsics whose contracts were said to say too little

    def run(self, line: str, cancel: ag.CancelToken) -> str | None:
        """Runs a line such as "/rewind 2"; returns what is to be said instead of the last message,
        if anything. Raises EOFError to leave, InputError for a command that does not exist or other
        arguments than it takes, and what the command raises.
        """
        self._cancel = cancel
        name, rest = [*line[1:].split(maxsplit=1), "", ""][:2]
        if (command := COMMANDS.get(_ALSO.get(name, name))) is not None:
            _, _, takes = command.usage.partition(" ")
            if rest and not takes:
                raise ag.InputError(f"/{name} takes no arguments, found '{rest}'")
            if takes and not rest and not takes.startswith("["):
                raise ag.InputError(f"/{name} needs an argument: {command.usage}")
            return command.run(self, rest)
        adapters = self._talk.model.adapters
        called, _, behind = line[1:].partition("(")
        if name in adapters:
            self._invoke(Written(line[1:], name, arguments=read_arguments(rest)))
            return None
        if behind and called in adapters:
            self._invoke(read_call(line[1:]))
            return None
        near = difflib.get_close_matches(name, [*COMMANDS, *adapters], 1)
        hint = f"did you mean /{near[0]}? Or " if near else ""
        raise ag.InputError(
            f"there is no command /{name}; {hint}see /help; to send a message that starts with a "
            "slash, type two"
        )

    @_command("/help", "show the commands")
    def _help(self, _: str) -> None:
        known = {command.usage: command.help for command in COMMANDS.values()}
        self._view.show(tables.commands(known, self._talk.model))
        if self._lines.can_edit:
            self._view.note(
                'Enter sends, Alt-Enter starts a new line; put """ around a text of several lines. '
                "Ctrl-C stops a reply, Ctrl-D leaves."
            )

    @_command("/adapters", "show the loaded adapters")
    def _adapters(self, _: str) -> None:
        self._view.show(tables.adapters(self._talk.model, self._view.width))

    @_command("/load NAME=PATH", "load an adapter; also by its name in the store")
    def _load(self, rest: str) -> None:
        name, path = split_adapter(rest, [*COMMANDS], Path(self._talk.model.path))
        with self._view.waiting(f"loading {name}"):
            file = self._talk.model.load_adapter(name, path)
        if steering.is_vector(file):
            way = f"steer replies by it with /steer {name} 1"
            self._view.note(f"loaded '{name}', steering vector, rank {file.rank}; {way}")
            return
        kind = tables.kind_of(file)
        try:
            contract = contract_of(self._talk.model, name)
        except ag.ContractError:  # said while it was loaded
            way = f"its contract is broken, /contract {name}=FILE gives it another"
        else:
            way = f"ask it with /{name if contract is None else usage(name, contract)}"
        self._view.note(f"loaded '{name}', {kind}, rank {file.rank}; {way}")

    @_command("/contract NAME=FILE", "give an adapter another io.yaml, which says how it is asked")
    def _contract(self, rest: str) -> None:
        talk = self._talk
        name, path = named_contract(rest)
        talk.model.set_contract(name, path)
        contract = talk.model.contract(name)
        self._view.note(f"{usage(name, contract)} is asked as {contract.source} says")
        self._watch_only([each for each in talk.watched if each.call.name != name])

    @_command("/unload NAME", "unload an adapter")
    def _unload(self, rest: str) -> None:
        talk = self._talk
        talk.model.unload_adapter(rest)
        by = talk.options.adapter
        if isinstance(by, Mapping):
            left = {name: scale for name, scale in by.items() if name != rest}
            talk.options = replace(talk.options, adapter=left or None)
        elif by == rest:
            talk.options = replace(talk.options, adapter=None)
        talk.steering.pop(rest, None)
        self._view.note(f"unloaded '{rest}'")
        self._watch_only([each for each in talk.watched if each.call.name != rest])

    @_command(
        "/steer [NAME [SCALE] | off]",
        "show or change the vectors that replies from now on are steered by; a scale of 0 ends one",
    )
    def _steer(self, rest: str) -> None:
        if rest:
            self.steer(steering.changed(self._talk.model, self._talk.steering, rest))
        self._tell(rest, steering.in_words(self._talk.steering))

    def steer(self, by: Mapping[str, float]) -> None:
        """Has these vectors act on replies, and no others. Raises UnknownAdapterError, and
        InputError for adapters that are none.
        """
        for name in by:
            steering.check(self._talk.model, name)
        self._talk.steering = dict(by)

    def steer_as_saved(self) -> None:
        """Steers as when the conversation was saved, as far as those vectors are loaded."""
        saved = self._talk.chat.notes.get(_STEERING)
        by = saved if isinstance(saved, dict) else {}
        try:
            given = [f"{name}={scale!r}" for name, scale in by.items()]
            self.steer(named_scales(given))
        except ag.AloraError as error:
            self._view.note(f"not steered, as it was when it was saved: {error}")
        else:
            if by:
                self._view.note(steering.in_words(self._talk.steering))

    @_command(
        "/all [NAME(ARGUMENTS)…]",
        "ask all adapters at once, in one batch; those that need arguments as they are watched, or "
        "with these",
    )
    def _all(self, rest: str) -> None:
        known = _intrinsics(self._talk.model)
        calls = {name: ag.IntrinsicCall(name) for name in known if not known[name].arguments}
        with_arguments = [each.call for each in self._talk.watched if each.call.arguments]
        if rest:
            known = _intrinsics(self._talk.model, *(each.name for each in read_calls(rest)))
            given = parse_all(rest, known)
            if guards := [str(each) for each in given if each.is_guard]:
                raise ag.InputError(f"'{guards[0]}': is a guard, for /watch; /all asks once")
            with_arguments += [each.call for each in given]
        calls |= {each.label: each for each in with_arguments}
        left_out = known.keys() - {each.name for each in calls.values()}
        forms = " ".join(usage(name, known[name]) for name in known if name in left_out)
        if not calls:
            raise ag.InputError(
                f"no adapter here can be asked without arguments; ask it with them: /all {forms}"
            )
        self._ask([*calls.values()])
        if forms:
            self._view.note(f"not asked, for they need arguments: {forms}")

    @_command(
        "/watch [NAME… | off]",
        "ask these, and no others, at every turn, also as ALIAS=NAME(ARGUMENTS); NAME! or NAME<0.5 "
        "is a guard, which the reply has to pass",
    )
    def _watch(self, rest: str) -> None:
        if rest == "off":
            self._watch_only([])
        elif rest:
            self.watch(rest)
        self._view.note(in_words(self._talk.watched))

    def watch(self, names: str) -> None:
        """What /watch does, without saying what is watched. Raises InputError."""
        written = read_calls(names)
        known = _intrinsics(self._talk.model, *(each.name for each in written))
        self._watch_only(parse_all(names, known))
        self._tell_what_lacks(each.name for each in written if "@" not in each.rest)

    def _watch_only(self, watched: list[Watched]) -> None:
        """Watches these, and says which no longer are: nobody should believe to be guarded."""
        before, self._talk.watched = self._talk.watched, watched
        for told in no_longer(before, watched):
            self._view.note(told)

    def watch_as_saved(self) -> None:
        """Watches what was watched when the conversation was saved, unless something is by now."""
        specs = self._talk.chat.notes.get(_WATCHED)
        if not isinstance(specs, list) or not specs:
            return
        text = " ".join(map(str, specs))
        if self._talk.watched:
            if specs != [each.spec for each in self._talk.watched]:
                then = f"watching {text}"  # of intrinsics that may not be loaded any more
                with contextlib.suppress(ag.AloraError):
                    then = in_words(parse_all(text, intrinsics_of(self._talk.model)))
                now = in_words(self._talk.watched)
                self._view.note(f"when it was saved, it was {then}; now {now}")
            return
        try:
            self.watch(text)
        except ag.AloraError as error:
            self._view.note(f"not watched, as it was when it was saved: {text}: {error}")
        else:
            self._view.note(in_words(self._talk.watched))

    def _tell_what_lacks(self, names: Iterable[str]) -> None:
        """Says once of each intrinsic that its contract does not say what it judges."""
        known = intrinsics_of(self._talk.model)
        for name in names:
            if name in known and known[name].judges is None and name not in self._told:
                self._told.add(name)
                self._view.note(
                    f"'{name}': its contract does not say whether it judges the question or the "
                    'answer ("x-alora" in its response_format), so it is asked about all that was '
                    f"said; /watch also takes {name}@question"
                )

    def _invoke(self, asked: Written) -> None:
        contract = contract_of(self._talk.model, asked.name)
        if contract is not None:
            self._ask([asked.call(contract)])
        elif asked.arguments is not None:
            steering.check_asked(self._talk.model, asked.name)
            raise _no_contract(asked.name)
        else:
            self._reply_of(asked.name)

    def _ask(self, calls: Sequence[ag.IntrinsicCall]) -> None:
        with self._view.waiting(f"asking {', '.join(each.label for each in calls)}"):
            verdicts = self._talk.ask(calls, self._cancel)
        self._tell_what_lacks(each.name for each in calls)
        self._view.answers(verdicts)

    def _reply_of(self, name: str) -> None:
        """What an adapter without a contract says next, on a fork."""
        with self._talk.chat.fork() as fork:
            by = {**self._talk.steering, name: 1.0}
            options = replace(self._talk.options, adapter=by)
            with self._view.waiting(f"waiting for {name}"):
                reply = fork.reply(options, cancel=self._cancel)
            self._view.aside(name, reply.text)

    @_command("/rewind [N]", "take back the last turn, or the last N")
    def _rewind(self, rest: str) -> None:
        n = int(rest or 1) if (rest or "1").isdecimal() else 0
        if n < 1:
            raise ag.InputError(f"expected a number of turns, found '{rest}'")
        self._talk.rewind(n)
        left = tables.said(self._talk.chat)
        self._view.note(f"took back {plural(n, 'turn')}; {left} left")

    @_command("/clear", "start over; the system message, documents and settings stay")
    def _clear(self, _: str) -> None:
        self._talk.clear()
        self._view.note("a new conversation begins")

    @_command("/edit [TEXT]", "change your last message, and have it answered again")
    def _edit(self, rest: str) -> str | None:
        before = self._talk.last_said()
        if rest:
            return rest
        if not self._lines.can_edit:
            raise ag.InputError("/edit needs the new text here: /edit TEXT")
        text = ""
        with contextlib.suppress(KeyboardInterrupt, EOFError):
            text = whole(self._lines.read(before))
        if not text.strip():
            self._view.note("(left as it was)")
            return None
        if text.startswith("/") and not text.startswith("//"):
            return self.run(text.strip(), self._cancel)
        return text.removeprefix("/")

    @_command("/retry", "another reply to your last message")
    def _retry(self, _: str) -> str:
        said = self._talk.last_said()
        sampling = self._talk.options.sampling
        if sampling.temperature == 0:
            self._view.note("the likeliest reply is always the same; see /set temperature")
        elif sampling.seed is not None:
            self._view.note("with a seed the reply is the same; see /set seed off")
        return said

    @_command("/system [TEXT | off]", "show or set the system message")
    def _system(self, rest: str) -> None:
        if rest:
            instructions = [] if rest == "off" else [ag.Message("system", rest)]
            said = self._talk.chat.messages[self._talk.chat.system is not None :]
            self._change(messages=[*instructions, *said])
        system = self._talk.chat.system
        self._tell(rest, "no system message" if system is None else f"system message: {system}")

    @_command("/doc [FILE | off]", "show the documents, or add one")
    def _doc(self, rest: str) -> None:
        documents = self._talk.chat.documents
        if rest == "off":
            documents = []
        elif rest:
            documents.append(read_document(file_path(rest), len(documents) + 1))
        if rest:
            self._change(documents=documents)
        if rest and not documents:
            self._view.note("no documents")
        elif rest:
            for i, each in enumerate(documents, 1):
                self._view.note(f"  {i}  {each.title or each.text}")
            if note := tables.place_note(self._talk.chat):
                self._view.note(note)
        else:
            self._view.show(tables.documents(documents))

    def _change(
        self,
        *,
        messages: Sequence[ag.Message] | None = None,
        documents: Sequence[ag.Document] | None = None,
    ) -> None:
        with self._view.waiting("re-reading the conversation"):
            timings = self._talk.change(
                self._view.reading, self._cancel, messages=messages, documents=documents
            )
        if timings.evaluated:
            self._view.note(
                f"the conversation was re-read: {plural(timings.evaluated, 'token')} in "
                f"{duration(timings.total)}, {timings.reused} reused"
            )

    def _tell(self, change: str, text: str) -> None:
        """How something is after a change; or, if there was none, because that was asked."""
        if change:
            self._view.note(text)
        else:
            self._view.show(text)

    @_command("/set [NAME VALUE]", "show or change how replies are made, such as temperature")
    def _set(self, rest: str) -> None:
        talk = self._talk
        name, text = [*rest.split(maxsplit=1), "", ""][:2]
        if name:
            if text or name not in SETTINGS:
                talk.options = changed_options(talk.model, talk.options, name, text)
            self._tell(text, f"{name} {shown_setting(talk.options, name)}")
        else:
            self._view.show(tables.settings(talk.options))

    @_command("/save FILE", "save the conversation, with all that was read of it")
    def _save(self, rest: str) -> None:
        path, over = file_path(rest), ""
        with contextlib.suppress(OSError):  # saving will say what is wrong, if anything is
            if not ag.is_saved_session(path):
                raise ag.InputError(
                    f"{path}: exists and is not a saved conversation; choose another name"
                )
            over = ", in place of an older one"
        with self._view.waiting("saving"):
            specs = [each.spec for each in self._talk.watched]
            notes = {_WATCHED: specs, _STEERING: self._talk.steering}
            self._talk.chat.save(path, notes={k: v for k, v in notes.items() if v} or None)
        said = tables.said(self._talk.chat)
        self._view.note(f"saved {said}, {size_text(path.stat().st_size)}{over}: {path}")

    @_command("/restore FILE", "go on with a saved conversation")
    def _restore(self, rest: str) -> None:
        with self._view.waiting("restoring"):
            chat = self._talk.model.restore(file_path(rest))
        self._talk.replace_chat(chat)
        said = tables.said(chat)
        self._view.note(f"restored {said}, {len(chat.tokens)} tokens; nothing was read again")
        self.watch_as_saved()
        self.steer_as_saved()
        for message in chat.messages[chat.system is not None :][-2:]:
            self._view.show(f"{message.role}: {message.content}")

    @_command("/ctx [N]", "show or change how many tokens the KV cache has room for")
    def _ctx(self, rest: str) -> None:
        talk = self._talk
        if not rest:
            self._view.show(tables.room(talk.chat))
            return
        n_ctx = int(rest) if rest.isdecimal() else 0
        if not n_ctx:
            raise ag.InputError(f"/ctx: expected a number of tokens, found '{rest}'")
        with self._view.waiting("moving to another cache"):
            dropped, timings = talk.resize(n_ctx, self._view, self._cancel)
        gone = f"; the oldest {plural(dropped, 'turn')} had no room" if dropped else ""
        n, read = timings.reused, timings.evaluated
        cost = f"; {n} reused, {read} re-read" if n or read else ""
        self._view.note(f"the KV cache has room for {talk.model.n_ctx} tokens{gone}{cost}")
        if told := beyond(talk.model):
            self._view.note(told)

    @_command("/cache", "show what is in the KV cache, as a map")
    def _cache(self, _: str) -> None:
        talk = self._talk
        report = talk.model.cache_report()
        self._view.show(tables.cache_map(talk.chat, report, talk.reused, self._view.width))

    @_command("/stats", "show what each turn took")
    def _stats(self, _: str) -> None:
        self._view.show(tables.costs(self._talk.turns, self._view.width))

    @_command("/quit", "leave; also /exit and /bye")
    def _quit(self, _: str) -> None:
        raise EOFError


COMMANDS["exit"] = COMMANDS["bye"] = COMMANDS["quit"]


def _intrinsics(model: ag.Model, *asked: str) -> dict[str, ag.Contract]:
    """Those that are loaded. Raises InputError if there are none, and for adapters among the
    `asked` that have no contract; ContractError for those whose contract is broken.
    """
    for name in asked:
        if name in model.adapters and contract_of(model, name) is None:
            steering.check_asked(model, name)
            raise _no_contract(name)
    if known := intrinsics_of(model):
        return known
    with_weights = [name for name in model.adapters if name not in steering.vectors_of(model)]
    for name in with_weights:
        _ = contract_of(model, name)
    if with_weights:
        raise _no_contract(*with_weights)
    raise ag.InputError(
        "no adapters are loaded; -a NAME=PATH or, in the chat, /load NAME=PATH loads one"
    )


def _no_contract(*names: str) -> ag.InputError:
    has = "has" if len(names) == 1 else "have"
    return ag.InputError(
        f"{', '.join(names)}: {has} no contract, which says how an adapter is asked; give one: "
        f"/contract {names[0]}=io.yaml, or --contract {names[0]}=io.yaml when the chat begins"
    )
