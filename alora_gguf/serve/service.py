"""What a server serves: the model as soon as it is loaded, its adapters, and who is at work."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from starlette.requests import Request

import alora_gguf as ag

from .adapters import Adapters, Asked, View
from .errors import NotReadyError
from .guard import MAX_BODY
from .metrics import Metrics
from .work import Desk, Job

_OPTIONS: Final = {
    "pass its Jinja text as template=, or use a session and write prompts yourself": (
        "start the server with --chat-template FILE, or send prompts to /v1/completions"
    ),
    "pass another as template=": "start the server with another --chat-template",
    "close or rewind a session, or open the model with a larger n_ctx": (
        "start the server with a larger --n-ctx"
    ),
    "open the model with a larger n_ctx": "start the server with a larger --n-ctx",
    "close a session, or open the model with a larger n_seq_max": (
        "start the server with a smaller --parallel"
    ),
}
"""What messages say to programs, as it is said to who asks a server."""
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+/?")
State = Literal["loading", "ready", "draining", "lost"]
"""Lost: layers of the model were on a server that is gone (ContextOptions.rpc)."""
VERSION: Final = "0.12.0"
"""The version of vLLM's that /version answers with: from this one on clients such as mellea send
`structured_outputs`.
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server serves.

    name          the base's name; None: its file's
    api_key       what requests must bear; None: any may ask
    hosts         names that requests may be addressed to, beside addresses and localhost
    origins       of pages elsewhere that may ask; "*" for any
    adapters_dir  below it are adapters that requests may load; None: they may load none
    n_parallel    requests that are answered at a time
    n_waiting     requests that may wait
    template      Jinja to write conversations with; None: the base's own
    max_tokens    the most tokens of a reply whose request sets no limit
    max_body      bytes of a request
    """

    name: str | None = None
    api_key: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    adapters_dir: Path | None = None
    n_parallel: int = 16
    n_waiting: int = 64
    template: str | None = None
    max_tokens: int = 1024
    max_body: int = MAX_BODY

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key.strip():
            raise ag.InputError(
                "the API key is empty, which would let anybody ask; leave it out, or give one"
            )
        if self.name is not None and (not self.name or ":" in self.name):
            raise ag.InputError(
                f"the name is {self.name!r}, expected one without ':', which adapters' follow"
            )
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ag.InputError(
                    f"{origin!r} is no origin, expected a scheme, a host and perhaps a port, such "
                    "as http://localhost:3000, or *"
                )
        object.__setattr__(self, "origins", tuple(each.rstrip("/") for each in self.origins))


class Service:
    """One model being served. `model` and `adapters` are there once it is ready."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.max_tokens = settings.max_tokens
        self.state: State = "loading"
        self.desk = Desk(settings.n_parallel, settings.n_waiting)
        self.metrics = Metrics(self.desk)
        self.desk.watch = self.metrics.observe
        self.name, self.opened = "", 0
        self._model: ag.Model | None = None
        self._adapters: Adapters | None = None
        self._template = ""

    def open(self, model: ag.Model) -> None:
        """Begins to serve."""
        settings = self.settings
        self.name = settings.name or Path(model.path).name.removesuffix(".gguf")
        if settings.template is not None:
            model.chat(template=settings.template).close()  # one that cannot be read is said now
        self._model = model
        self._adapters = Adapters(model, self.name, settings.adapters_dir)
        self._template = settings.template or ag.BaseFile.read(model.path).chat_template or ""
        self.opened = int(time.time())
        self.state = "ready"

    @property
    def model(self) -> ag.Model:
        """The model. Raises NotReadyError until it is loaded."""
        self._check()
        assert self._model is not None  # noqa: S101
        return self._model

    @property
    def adapters(self) -> Adapters:
        """Its adapters; raises as `model` does."""
        self._check()
        assert self._adapters is not None  # noqa: S101
        return self._adapters

    def _check(self) -> None:
        if self.state == "loading" or self._model is None:
            raise NotReadyError("the model is being loaded; try again in a moment")

    def start(self, work: Callable[[View, Job], None]) -> Job:
        """Begins a request's work, which sees the adapters as they are when it starts. Raises
        BusyError, NotReadyError.
        """
        if self.state == "draining":
            raise NotReadyError("the server is about to end, and takes no more requests")
        view = self.adapters.view()
        held = view.__enter__()

        def over() -> None:
            view.__exit__(None, None, None)

        try:
            patiently = self.desk.patiently
            return self.desk.start(lambda job: patiently(job, lambda: work(held, job)), over)
        except BaseException:
            over()
            raise

    def shown(self, text: str) -> str:
        """A message of the package's as clients are to see it: without this machine's paths, and
        with the server's options in place of Python's.
        """
        if self._model is not None and self._adapters is not None:
            named = {self._model.path: self.name}
            served = self._adapters.served.values()
            named |= {str(e.file.path): e.name for e in served if e.file.path}
            for path, name in named.items():
                text = text.replace(path, name)
        for python, option in _OPTIONS.items():
            text = text.replace(python, option)
        return text

    def model_name(self, whom: Asked) -> str:
        """What an answer says that it is of."""
        return self.name if whom.name is None else f"{self.name}:{whom.name}"

    @property
    def template(self) -> str:
        """The Jinja text that writes conversations."""
        return self._template

    @property
    def capabilities(self) -> list[str]:
        """What can be asked of it, in Ollama's words."""
        thinks = ["thinking"] if "<think>" in self._template else []
        tools = ["tools"] if self._template else []
        return ["completion", *tools, "embedding", "decisions", *thinks]

    def template_uses(self, name: str) -> bool:
        """Whether the base's chat template mentions a variable: clients of many servers send what
        some template needs.
        """
        return re.search(rf"\b{re.escape(name)}\b", self._template) is not None


def service_of(request: Request) -> Service:
    """The service of a request's app."""
    service: Service = request.app.state.service
    return service
