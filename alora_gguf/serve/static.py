"""The page at /: its files, and the rules that browsers keep for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from alora_gguf import demo

from .service import service_of
from .streams import answer

_FOLDER: Final = Path(__file__).parent / "page"
_HEADERS: Final = {
    # nothing from elsewhere, no script but our files, and texts never become markup
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # kept, and asked for again: another version of the server is another page
    "cache-control": "no-cache",
}


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, or 304 to a browser that has it."""
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


_FILES: Final = _Files(directory=_FOLDER)


async def _index(request: Request) -> Response:
    return await _FILES.get_response("index.html", request.scope)


async def _icon(request: Request) -> Response:
    return await _FILES.get_response("icon.svg", request.scope)


async def _example(request: Request) -> Response:
    """What to begin with: the demo's documents and questions, where its model is served."""
    if Path(service_of(request).model.path) != demo.base_path():
        return answer({})
    return answer(example())


def example() -> dict[str, Any]:
    """The demo's conversation, as the page offers it."""
    return {
        "documents": list(demo.DOCUMENTS),
        # but for follow-ups
        "questions": [demo.TURNS[i].question for i in (0, 3, 2)],
        "settings": {"temperature": 0},
    }


ROUTES: Final[tuple[BaseRoute, ...]] = (
    Route("/", _index),
    Route("/favicon.ico", _icon),
    Route("/page/example.json", _example),
    Mount("/page", _FILES),
)
