"""One repository on a hub, through huggingface_hub: what it holds at a commit, and parts of that.

Every failure of the network, the hub or the cache becomes one of our errors here, in words of our
own: those of the libraries below may quote addresses with signatures, and tokens.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from alora_gguf.convert.library import listing
from alora_gguf.convert.snapshot import Snapshot

from alora_gguf.errors import AloraError, HubError, InputError

from .reference import HubReference, is_safe

_AGENT: Final = "alora-gguf"
_BLOCK: Final = 1 << 16
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # these may name no file


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

    @property
    def folder(self) -> Path:
        """The cache."""
        from huggingface_hub import constants

        return Path(self.cache or constants.HF_HUB_CACHE).expanduser().resolve()

    @property
    def is_offline(self) -> bool:
        """Whether to make do with the cache."""
        from huggingface_hub import constants

        return bool(constants.HF_HUB_OFFLINE) if self.offline is None else self.offline


class Repository:
    """A repository at the commit that the reference's revision means now.

    files     its files' names and sizes in bytes, None where the hub does not say
    sha256    the SHA-256 of those that it keeps outside of git, weights for instance
    snapshot  the directory in the cache that fetched files appear in

    Raises HubError for a reference to what is not there, and if the hub cannot be asked.
    """

    def __init__(self, reference: HubReference, hub: Hub) -> None:
        from huggingface_hub import HfApi, constants

        self.reference = reference
        self._timeout = hub.timeout
        self._endpoint = (hub.endpoint or constants.ENDPOINT).rstrip("/")
        self._host = _host(self._endpoint)
        self._cache = hub.folder
        self._noted = False
        self._api = HfApi(endpoint=self._endpoint, library_name=_AGENT)
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
        root = _folder_of(reference, self._cache) / "snapshots" / commit
        self.snapshot = Snapshot(root, root, reference.repo, commit)

    def names(self, directory: str) -> list[str]:
        """What a directory of the repository holds, files and directories; "" is its root."""
        prefix = f"{directory}/" if directory else ""
        inside = (name[len(prefix) :] for name in self.files if name.startswith(prefix))
        return sorted({name.partition("/")[0] for name in inside})

    def fetch(self, name: str) -> Path:
        """The local copy of one of the files, downloaded if it is not in the cache.

        Raises HubError if that fails.
        """
        if not self._noted:
            self._note_commit()
        with self._explained(name):
            found = self._api.hf_hub_download(
                self.reference.repo,
                name,
                revision=self.snapshot.revision,
                cache_dir=self._cache,
                etag_timeout=self._timeout,
                tqdm_class=_bar_called(name),
            )
        path = self.snapshot.root.joinpath(*name.split("/"))
        if Path(found) != path:
            raise self._fail(f"sent '{name}' of another commit than the one asked for")
        return path

    def _note_commit(self) -> None:
        """Has the cache note which commit the revision is, for times without a network.

        huggingface_hub sets no time limit here, but the hub has just answered.
        """
        with self._explained():
            self._api.resolve_revision(
                self.reference.repo, revision=self.reference.revision, cache_dir=self._cache
            )
        self._noted = True

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes of a file from `start` to before `stop`, fewer only if the answer ends early.

        No more is read than that, also where the hub ignores which part was asked for: there,
        huggingface_hub's own file system would read all. Raises HubError if that fails.
        """
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there
            build_hf_headers,
        )

        url = hf_hub_url(
            self.reference.repo, name, revision=self.snapshot.revision, endpoint=self._endpoint
        )
        headers = build_hf_headers(library_name=_AGENT)
        headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        out = bytearray()
        client: Any = get_session()  # follows redirects, and takes no token to another host
        with (
            self._explained(name),
            client.stream("GET", url, headers=headers, timeout=self._timeout) as answer,
        ):
            hf_raise_for_status(answer)
            skip = self._skipped(answer.status_code, answer.headers, name, start)
            for block in answer.iter_bytes(_BLOCK):
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

    def _fail(self, problem: str) -> HubError:
        return HubError(f"{self.reference.text}: {self._host} {problem}")

    @contextlib.contextmanager
    def _explained(self, name: str | None = None) -> Iterator[None]:
        try:
            yield
        except AloraError:
            raise
        except Exception as error:  # whatever the HTTP and storage libraries of the day raise
            what = f"{self.reference.text}: '{name}'" if name else self.reference.text
            reason = (
                _answered(error, self.reference, self._host)
                or _unanswered(error, self._host)
                or self._unexplained(error, name)
            )
            raise HubError(f"{what}: {reason}") from error

    def _unexplained(self, error: Exception, name: str | None) -> str:
        for link in _chain(error):
            if isinstance(link, OSError) and (
                link.errno in _DISK or str(link.filename or "").startswith(str(self._cache))
            ):
                return (
                    f"the cache {self._cache} cannot be written: {link.strerror}; make room, or "
                    "set HF_HUB_CACHE to another directory"
                )
        if type(error) is OSError and name:  # how huggingface_hub says that the size is another
            return f"did not arrive whole from {self._host}; try again"
        problem = (
            f"could not be fetched from {self._host}"
            if name
            else f"{self._host} did not answer as a hub does"
        )
        return (
            f"{problem} ({type(error).__name__}); try again, and check that HF_ENDPOINT is the "
            "address of a hub"
        )


def cached(reference: HubReference, hub: Hub) -> Path:
    """The directory of the reference's revision in the cache, for use without a network.

    Raises HubError if it is not there.
    """
    found = cached_snapshot(reference.repo, reference.revision, hub.folder)
    if found is None or not found.joinpath(*reference.path.split("/")).exists():
        raise HubError(
            f"{reference.text}: is not in the cache {hub.folder}, and HF_HUB_OFFLINE keeps it from "
            "being fetched; unset it, or fetch once while there is a network"
        )
    return found


def cached_snapshot(repo: str, revision: str | None, cache: Path) -> Path | None:
    """The directory of a repository's revision in a cache of huggingface_hub, if it is there."""
    from huggingface_hub import errors, snapshot_download

    try:
        found = Path(
            snapshot_download(
                repo,
                revision=revision,
                cache_dir=cache,
                local_files_only=True,
                allow_patterns=[],  # or it might miss files that nobody has asked for
            )
        )
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return found if _COMMIT.fullmatch(found.name) else None


def _folder_of(reference: HubReference, cache: Path) -> Path:
    return cache / f"models--{reference.repo.replace('/', '--')}"


def _bar_called(name: str) -> Any:
    """A progress bar with a file's name: by default it has the end of an address, which may be a
    signature.
    """
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # documented there

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options["desc"] = name.rpartition("/")[2]
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

    return Bar


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


def _answered(error: Exception, reference: HubReference, host: str) -> str | None:
    """What an answer that is an error means, and what to do about it."""
    from huggingface_hub import errors

    is_a = _classes(error)
    chain = _chain(error)
    statuses = (getattr(getattr(link, "response", None), "status_code", None) for link in chain)
    status = next((number for number in statuses if number is not None), None)
    if is_a(errors.GatedRepoError):
        return (
            f"{reference.repo} is gated: ask for access on its page at {host}, then log in with "
            "`hf auth login` (or set HF_TOKEN)"
        )
    if is_a(errors.RevisionNotFoundError):
        slash = "; a '/' in its name is written %2F" if reference.path else ""
        return (
            f"there is no revision '{reference.revision}' of {reference.repo} on {host}; check the "
            f"branch, tag or commit{slash}"
        )
    if is_a(errors.RepositoryNotFoundError) or status == 401:
        return (
            f"there is no repository {reference.repo} on {host} that you may see; check the name "
            "or, if it is private, log in with `hf auth login` (or set HF_TOKEN)"
        )
    if status == 404:
        return f"is not on {host} (any more); try again, or check HF_ENDPOINT"
    if status == 403:
        return (
            f"{host} refuses access to {reference.repo} (HTTP 403); log in with `hf auth login`, "
            "with a token that may read it"
        )
    if status == 429:
        return (
            f"{host} has had too many requests (HTTP 429); wait some minutes, or log in with "
            "`hf auth login`"
        )
    return None if status is None else f"{host} failed with HTTP {status}; try again later"


def _unanswered(error: Exception, host: str) -> str | None:
    """The same for no answer, or half of one."""
    from huggingface_hub import errors

    # the library that huggingface_hub stands on: httpx, or httpx2 since its version 2
    http: Any = import_module(errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0])
    is_a = _classes(error)
    if is_a(errors.OfflineModeIsEnabled):
        return (
            "HF_HUB_OFFLINE keeps it from being fetched; unset it, or fetch once while there is a "
            "network"
        )
    if is_a(http.TimeoutException, TimeoutError):
        return f"{host} did not answer in time; try again later"
    if is_a(http.RemoteProtocolError, http.ReadError):
        return f"the connection to {host} broke off; try again"
    if is_a(http.NetworkError, http.ProxyError, ConnectionError):
        reasons = [e.strerror for e in _chain(error) if isinstance(e, OSError) and e.strerror]
        return (
            f"{host} cannot be reached{f' ({reasons[-1]})' if reasons else ''}; check the network, "
            "proxy settings and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use what was fetched before"
        )
    return None


def _classes(error: Exception) -> Callable[..., bool]:
    """Asks whether an error, or one of those that caused it, is of one of some classes."""
    chain = _chain(error)
    return lambda *kinds: any(isinstance(link, kinds) for link in chain)


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what caused it, outermost first."""
    out: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in out:
        out.append(link)
        link = link.__cause__ or link.__context__
    return out
