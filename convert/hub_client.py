"""One repository on a hub, through huggingface_hub: what it holds at a commit, and parts of that.

Every failure of the network, the hub or the cache becomes one of our errors here, in words of our
own: those of the libraries below may quote addresses with signatures, and tokens.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from alora_gguf.errors import AloraError, ConvertError, InputError

from .hub_errors import explain
from .hub_reference import HubReference, is_safe
from .library import listing
from .snapshot import Snapshot, cached_snapshot

_AGENT: Final = "alora-gguf"
_BLOCK: Final = 1 << 16
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Hub:
    """Which hub, and where what it sends is kept.

    endpoint  its address; by default what HF_ENDPOINT says, or https://huggingface.co
    cache     huggingface_hub's cache; by default what HF_HUB_CACHE or HF_HOME say
    offline   whether to make do with the cache; by default whether HF_HUB_OFFLINE says so
    timeout   seconds to wait for the hub to go on with an answer
    """

    endpoint: str | None = None
    cache: Path | None = None
    offline: bool | None = None
    timeout: float = 10.0


class Repository:
    """A repository at the commit that the reference's revision means now.

    files     its files' names and sizes in bytes, None where the hub does not say
    sha256    the SHA-256 of those that it keeps outside of git, weights for instance
    snapshot  the directory in the cache that fetched files appear in

    Raises InputError for a reference to what is not there, ConvertError if the hub cannot be asked.
    """

    def __init__(self, reference: HubReference, hub: Hub) -> None:
        from huggingface_hub import HfApi, constants

        from alora_gguf import __version__

        self.reference = reference
        self._timeout = hub.timeout
        self._endpoint = (hub.endpoint or constants.ENDPOINT).rstrip("/")
        self._host = _host(self._endpoint)
        self._cache = _cache(hub)
        self._version = __version__
        self._api = HfApi(
            endpoint=self._endpoint, library_name=_AGENT, library_version=self._version
        )
        with self._explained():
            info = self._api.model_info(
                reference.repo,
                revision=reference.revision,
                files_metadata=True,
                timeout=hub.timeout,
            )
            commit, siblings = info.sha, info.siblings
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise self._fail("did not name a commit; is HF_ENDPOINT the address of a hub?")
        self.files: dict[str, int | None] = {}
        self.sha256: dict[str, str] = {}
        for file in siblings or ():
            if not is_safe(file.rfilename):
                raise self._fail(
                    f"lists a file whose name leaves the repository ({listing([file.rfilename])}); "
                    "nothing was fetched"
                )
            self.files[file.rfilename] = file.size if isinstance(file.size, int) else None
            digest = getattr(file.lfs, "sha256", None)
            if isinstance(digest, str):
                self.sha256[file.rfilename] = digest
        root = folder_of(reference, self._cache) / "snapshots" / commit
        self.snapshot = Snapshot(root, root, reference.repo, commit)

    def names(self, directory: str) -> list[str]:
        """What a directory of the repository holds, files and directories; "" is its root."""
        prefix = f"{directory}/" if directory else ""
        inside = (name[len(prefix) :] for name in self.files if name.startswith(prefix))
        return sorted({name.partition("/")[0] for name in inside})

    def fetch(self, name: str) -> Path:
        """The local copy of one of the files, downloaded if it is not in the cache.

        Raises ConvertError if that fails.
        """
        with self._explained(name):
            found = self._api.hf_hub_download(
                self.reference.repo,
                name,
                revision=self.snapshot.revision,
                cache_dir=self._cache,
                etag_timeout=self._timeout,
                **_bar_called(name, self._api.hf_hub_download),
            )
        path = self.snapshot.root.joinpath(*name.split("/"))
        if Path(found) != path:
            raise self._fail(f"sent '{name}' of another commit than the one asked for")
        return path

    def remember(self) -> None:
        """Notes in the cache which commit the revision means, so that it is known offline.

        huggingface_hub does so where it resolves a revision itself.
        """
        revision, commit = self.reference.revision or "main", self.snapshot.revision
        if commit is None or _COMMIT.fullmatch(revision):
            return
        ref = self.snapshot.root.parents[1].joinpath("refs", *revision.split("/"))
        part = ref.with_name(f"{ref.name}.{os.urandom(4).hex()}.tmp")
        with contextlib.suppress(OSError):  # a cache that cannot be written serves all the same
            ref.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(commit, encoding="utf-8")
            part.replace(ref)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes of a file from `start` to before `stop`, fewer only if the answer ends early.

        No more is read than that, also where the hub ignores which part was asked for. Raises
        ConvertError if that fails.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        url = hf_hub_url(
            self.reference.repo,
            name,
            revision=self.snapshot.revision,
            endpoint=self._endpoint,
        )
        headers = build_hf_headers(library_name=_AGENT, library_version=self._version)
        headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        out = bytearray()
        with (
            self._explained(name),
            open_stream(get_session(), url, headers, self._timeout) as (answer, blocks),
        ):
            hf_raise_for_status(answer)
            skip = self._skipped(answer.status_code, answer.headers, name, start)
            for block in blocks:
                out += block[skip:]
                skip = max(0, skip - len(block))
                if len(out) >= stop - start:
                    break
        return bytes(out[: stop - start])

    def _skipped(self, status: int, headers: Mapping[str, str], name: str, start: int) -> int:
        """How many bytes an answer begins before `start`."""
        if status == 200:
            return start
        found = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
        if status == 206 and found and int(found[1]) == start:
            return 0
        raise self._fail(f"sent other bytes of '{name}' than those asked for (HTTP {status})")

    def _fail(self, problem: str) -> ConvertError:
        return ConvertError(f"{self.reference.text}: {self._host} {problem}")

    @contextlib.contextmanager
    def _explained(self, name: str | None = None) -> Iterator[None]:
        try:
            yield
        except AloraError:
            raise
        except Exception as error:  # whatever the HTTP and storage libraries of the day raise
            raise explain(
                error, self.reference, host=self._host, cache=self._cache, name=name
            ) from error


def cached(reference: HubReference, hub: Hub) -> Path:
    """The directory of the reference's revision in the cache, for use without a network.

    Raises ConvertError if it is not there.
    """
    cache = _cache(hub)
    found = cached_snapshot(folder_of(reference, cache), reference.revision)
    if found is None or not found.joinpath(*reference.path.split("/")).exists():
        raise ConvertError(
            f"{reference.text}: is not in the cache {cache}, and HF_HUB_OFFLINE keeps it from "
            "being fetched; unset it, or fetch once while there is a network"
        )
    return found


def is_offline(hub: Hub) -> bool:
    """Whether to make do with the cache."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) if hub.offline is None else hub.offline


def folder_of(reference: HubReference, cache: Path) -> Path:
    """Where the cache keeps a repository."""
    return cache / f"models--{reference.repo.replace('/', '--')}"


def _cache(hub: Hub) -> Path:
    from huggingface_hub import constants

    return Path(hub.cache or constants.HF_HUB_CACHE).expanduser().resolve()


def _bar_called(name: str, download: Callable[..., Any]) -> dict[str, Any]:
    """The option for a progress bar with a file's name, where there is one: by default it has the
    end of an address, which may be a signature.
    """
    if "tqdm_class" not in inspect.signature(download).parameters:  # before version 1.5
        return {}
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # documented there

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options["desc"] = name.rpartition("/")[2]
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

    return {"tqdm_class": Bar}


def _host(endpoint: str) -> str:
    """The endpoint's name for messages, without what may be secret in it."""
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:  # no number for a port
        host = port = None
    if not host or parts.scheme not in ("http", "https"):
        raise InputError(
            "HF_ENDPOINT is not a hub's address such as https://huggingface.co; correct or unset it"
        )
    return f"{host}:{port}" if port else host


@contextlib.contextmanager
def open_stream(
    session: Any, url: str, headers: dict[str, str], timeout: float
) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """Begins to read an address: the answer, and its body in blocks, read when asked for.

    `session` is what huggingface_hub has: of httpx or, before its version 1, of requests.
    """
    if callable(getattr(session, "stream", None)):
        options = {"headers": headers, "timeout": timeout, "follow_redirects": True}
        with session.stream("GET", url, **options) as answer:
            yield answer, answer.iter_bytes(_BLOCK)
    else:
        with session.get(url, headers=headers, timeout=timeout, stream=True) as answer:
            yield answer, answer.iter_content(_BLOCK)
