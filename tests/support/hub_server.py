"""A hub on 127.0.0.1 for the real huggingface_hub client: repositories, commits, files, ranges.

As on the real one, files in LFS are redirected to a storage of another address, with a signature.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_AVeryGoodTokenForTests"  # noqa: S105
SIGNATURE = "signature-that-nobody-should-see"


@dataclass(frozen=True)
class Padded:
    """A large file: `head`, then zeros up to `size` bytes."""

    head: bytes
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self.size)
        known = self.head[start:stop]
        return known + bytes(stop - start - len(known))


Content = bytes | Padded


@dataclass
class Repo:
    """`revisions` maps branches, tags and commits to commits; `commits` those to files."""

    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    private: bool = False
    gated: bool = False


@dataclass(frozen=True)
class Asked:
    """A request that came, for which file, and how many bytes of body went back."""

    method: str
    path: str
    file: str | None
    range: str | None
    authorization: str | None
    storage: bool
    sent: int


class HubServer:
    """Set `trouble` to a function that answers a request itself and returns true, or lets it pass.

    `ignores_ranges` makes it send whole files whatever is asked for.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.answered: list[Asked] = []
        self.answering = 0
        self.lock = threading.Lock()
        self.trouble: Callable[[Handler], bool] | None = None
        self.ignores_ranges = False
        self._hub = _Server(self, storage=False)
        self._storage = _Server(self, storage=True)
        self.url = self._hub.url
        self.storage_url = self._storage.url

    def add(
        self,
        name: str,
        files: dict[str, Any],
        *,
        revision: str = "main",
        lfs: tuple[str, ...] = (".safetensors", ".gguf", ".bin"),
    ) -> str:
        """A commit with these files (text, bytes, JSON or Padded) that `revision` now means."""
        contents = {path: _content(value) for path, value in files.items()}
        digest = hashlib.sha1(usedforsecurity=False)
        for path, content in sorted(contents.items()):
            digest.update(f"{name}{revision}{path}".encode() + bytes(content[:4096]))
        commit = digest.hexdigest()
        repo = self.repos.setdefault(name, Repo())
        repo.revisions |= {revision: commit, commit: commit}
        repo.commits[commit] = contents
        repo.lfs |= {path for path in contents if path.endswith(lfs)}
        return commit

    @property
    def asked(self) -> list[Asked]:
        """The requests so far; one that is noted only once its answer is out is waited for."""
        deadline = time.monotonic() + 10
        while self.answering and time.monotonic() < deadline:
            time.sleep(0.005)
        return list(self.answered)

    @property
    def files_asked(self) -> list[str]:
        """The files whose contents went out, in order, each once."""
        return list(dict.fromkeys(a.file for a in self.asked if a.file and a.method == "GET"))

    def close(self) -> None:
        self._hub.close()
        self._storage.close()


@contextlib.contextmanager
def running() -> Iterator[HubServer]:
    server = HubServer()
    try:
        yield server
    finally:
        server.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer, *, storage: bool) -> None:
        self.hub = hub
        self.storage = storage
        super().__init__(("127.0.0.1", 0), Handler)
        # clients know the storage by another name, as some compare hosts without their ports
        host = "localhost" if storage else "127.0.0.1"
        self.url = f"http://{host}:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.hub = self.server.hub
        self.sent = 0
        self.file: str | None = None
        with self.hub.lock:
            self.hub.answering += 1
        try:
            if self.hub.trouble is None or not self.hub.trouble(self):
                self._storage() if self.server.storage else self._answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self._note()

    def _note(self) -> None:
        asked = self.headers.get
        note = Asked(
            self.command,
            self.path,
            self.file,
            asked("Range"),
            asked("Authorization"),
            self.server.storage,
            self.sent,
        )
        with self.hub.lock:
            self.hub.answered.append(note)
            self.hub.answering -= 1

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def reply(
        self, status: int, body: Content = b"", *, promised: int | None = None, **headers: str
    ) -> None:
        """Sends an answer; `promised` is a Content-Length that the body does not keep."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if promised is None else promised))
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(body), 1 << 16):
            block = bytes(body[start : start + (1 << 16)])
            self.wfile.write(block)
            self.sent += len(block)
        if promised is not None:
            self.close_connection = True

    def refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self.reply(status, body, X_Error_Code=code, X_Error_Message=message)

    def send_part(self, content: Content, **headers: str) -> None:
        """A file, or the part of it that was asked for."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not match or self.hub.ignores_ranges:
            self.reply(200, content, **headers)
            return
        start = int(match[1])
        stop = min(len(content), int(match[2]) + 1 if match[2] else len(content))
        if start >= len(content):
            self.reply(416, Content_Range=f"bytes */{len(content)}")
            return
        span = f"bytes {start}-{stop - 1}/{len(content)}"
        self.reply(206, content[start:stop], Content_Range=span, **headers)

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        if match is None:
            self.refuse(404, "NotFound", "no such page")
            return
        repo = self.hub.repos.get(match[1])
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.private and not known):
            # as the real one: who is not known is not told what exists
            self.refuse(404 if known else 401, "RepoNotFound", "Repository not found")
        elif repo.gated and not known and file:
            self.refuse(403, "GatedRepo", f"Access to model {match[1]} is restricted.")
        elif unquote(match[2] or "main") not in repo.revisions:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        elif api:
            self._describe(match[1], repo, repo.revisions[unquote(match[2] or "main")])
        else:
            self._file(repo, repo.revisions[unquote(match[2])], unquote(match[3]))

    def _describe(self, name: str, repo: Repo, commit: str) -> None:
        siblings = [
            {"rfilename": path, "size": len(content), "blobId": _git_hash(content)}
            | ({"lfs": _lfs(content)} if path in repo.lfs else {})
            for path, content in repo.commits[commit].items()
        ]
        info = {"id": name, "modelId": name, "sha": commit, "private": repo.private, "tags": []}
        body = json.dumps({**info, "downloads": 0, "siblings": siblings}).encode()
        self.reply(200, body, Content_Type="application/json")

    def _file(self, repo: Repo, commit: str, path: str) -> None:
        content = repo.commits[commit].get(path)
        if content is None:
            self.refuse(404, "EntryNotFound", "Entry not found")
        elif path in repo.lfs:
            digest = _sha256(content)
            self.reply(
                302,
                X_Repo_Commit=commit,
                X_Linked_Etag=f'"{digest}"',
                X_Linked_Size=str(len(content)),
                Location=f"{self.hub.storage_url}/blobs/{digest}?signature={SIGNATURE}",
            )
        else:
            self.file = path
            self.send_part(content, X_Repo_Commit=commit, ETag=f'"{_git_hash(content)}"')

    def _storage(self) -> None:
        digest = urlsplit(self.path).path.removeprefix("/blobs/")
        for repo in self.hub.repos.values():
            for files in repo.commits.values():
                for path, content in files.items():
                    if path in repo.lfs and _sha256(content) == digest:
                        self.file = path
                        self.send_part(content, ETag=f'"{digest}"')
                        return
        self.refuse(404, "NotFound", "no such blob")


def _content(value: Any) -> Content:
    if isinstance(value, (bytes, Padded)):
        return value
    return (value if isinstance(value, str) else json.dumps(value)).encode()


def _sha256(content: Content) -> str:
    if isinstance(content, Padded):  # nobody checks it; the whole would take seconds
        return hashlib.sha256(content.head + str(content.size).encode()).hexdigest()
    return hashlib.sha256(content).hexdigest()


def _lfs(content: Content) -> dict[str, Any]:
    return {"sha256": _sha256(content), "size": len(content), "pointerSize": 134}


def _git_hash(content: Content) -> str:
    return _sha256(content)[:40]
