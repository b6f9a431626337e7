"""An HTTP server: one base and its adapters, for clients that speak OpenAI's API and others.

    load = lambda: Model("base.gguf", adapters={"answerability": "answerability.gguf"})
    server = Server(load, Settings(), host="127.0.0.1", port=8080)
    server.serve_until_stopped()

Needs the extra `serve`. docs/serve.md has the doors, and a snippet for each client.
"""

from __future__ import annotations

from .app import create_app
from .index import program, write_index
from .server import Server
from .service import Service, Settings

__all__ = ["Server", "Service", "Settings", "create_app", "program", "write_index"]
