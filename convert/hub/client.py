"""One repository on a hub or, offline, in huggingface_hub's cache: what it holds at a commit.

Every failure of the network, the hub or the cache becomes one of our errors here, in words of our
own: those of the libraries below may quote addresses with signatures, and tokens.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from alora_gguf.convert.library import listing
from alora_gguf.convert.snapshot import COMMIT, Snapshot, open_directory

from alora_gguf.errors import AloraError, HubError, InputError

from .guard import guarded
from .reference import HubReference, is_safe

_AGENT: Final = "alora-gguf"
_BLOCK: Final = 1 << 16
_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # these may name no file


class Repository:
    """A repository at the commit that the reference's revision means now.

    files     its files' names and sizes in bytes, None where the hub does not say
    sha256    the SHA-256 of those that it keeps outside of git, weights for instance
    snapshot  the directory in the cache that fetched files appear in

    huggingface_hub's environment variables count. Where HF_HUB_OFFLINE is set, the repository is
    what the cache holds of it. Raises HubError for a reference to what is not there, and if the hub
    cannot be asked.
    """

    def __init__(self, reference: HubReference) -> None:
        from huggingface_hub import HfApi, constants

        self.reference = reference
        self.files: dict[str, int | None] = {}
        self.sha256: dict[str, str] = {}
        self._cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
        self._timeout = constants.HF_HUB_ETAG_TIMEOUT
        self._noted = False
        self._api: HfApi | None = None
        if constants.HF_HUB_OFFLINE:
            self.snapshot = self._find_cached()
        else:
            self._host = _host(constants.ENDPOINT)
            self._api = HfApi(library_name=_AGENT)
            self.snapshot = self._ask(self._api)

    def _find_cached(self) -> Snapshot:
        ref = self.reference
        root = cached_snapshot(ref.repo, ref.revision, self._cache)
        if root is None or not root.joinpath(*ref.path.split("/")).exists():
            raise HubError(
                f"{ref.text}: is not in the cache {self._cache}, and HF_HUB_OFFLINE keeps it from "
                "being fetched; unset it, or fetch once while there is a network"
            )
        files = (path for path in sorted(root.rglob("*")) if path.is_file())
        self.files = {path.relative_to(root).as_posix(): path.stat().st_size for path in files}
        return open_directory(root)[0]

    def _ask(self, api: Any) -> Snapshot:
        repo = self.reference.repo
        with self._explained(), guarded(None, self._fail):
            info = api.model_info(
                repo, revision=self.reference.revision, files_metadata=True, timeout=self._timeout
            )
            commit, siblings = info.sha, info.siblings
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise self._fail("did not name a commit; is HF_ENDPOINT the address of a hub?")
        for file in siblings or ():
            if not isinstance(file.rfilename, str) or not is_safe(file.rfilename):
                raise self._fail(
                    "lists a file whose name leaves the repository "
                    f"({listing([str(file.rfilename)])}); "
                    "nothing was fetched"
                )
            self.files[file.rfilename] = file.size if isinstance(file.size, int) else None
            digest = getattr(file.lfs, "sha256", None)
            if isinstance(digest, str):
                self.sha256[file.rfilename] = digest
        root = self._cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
        return Snapshot(root, root, repo, commit)

    def names(self, directory: str) -> list[str]:
        """What a directory of the repository holds, files and directories; "" is its root."""
        prefix = f"{directory}/" if directory else ""
        inside = (name[len(prefix) :] for name in self.files if name.startswith(prefix))
        return sorted({name.partition("/")[0] for name in inside})

    def fetch(self, name: str) -> Path:
        """The local copy of one of the files, downloaded if it is not in the cache."""
        if self._api is not None:
            ref, cache = self.reference, self._cache
            with self._explained(name), guarded(self.files[name], self._fail):
                if not self._noted:  # which commit the revision is, for times without a network
                    self._api.resolve_revision(ref.repo, revision=ref.revision, cache_dir=cache)
                    self._noted = True
                found = self._api.hf_hub_download(
                    ref.repo,
                    name,
                    revision=self.snapshot.revision,
                    cache_dir=cache,
                    etag_timeout=self._timeout,
                    tqdm_class=_bar_called(name),
                )
            if Path(found) != self.snapshot.root.joinpath(*name.split("/")):
                raise self._fail(f"sent '{name}' of another commit than the one asked for")
        return self.snapshot.require(name)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes of a file from `start` to before `stop`, fewer only if the answer ends early.

        No more is read than that, also where the hub ignores which part was asked for: there,
        huggingface_hub's own file system would read all. Raises HubError if that fails.
        """
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there
            build_hf_headers,
        )

        url = hf_hub_url(self.reference.repo, name, revision=self.snapshot.revision)
        headers = build_hf_headers(library_name=_AGENT)
        headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        out = bytearray()
        client: Any = get_session()  # follows redirects, and takes no token to another host
        with (
            self._explained(name),
            guarded(None, self._fail),
            client.stream("GET", url, headers=headers, timeout=self._timeout) as answer,
        ):
            hf_raise_for_status(answer)
            at = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            status = answer.status_code
            if status != 200 and not (at and int(at[1]) == start):
                raise self._fail(
                    f"sent other bytes of '{name}' than those asked for (HTTP {status})"
                )
            skip = start if status == 200 else 0  # there, the hub ignores the range
            for block in answer.iter_bytes(_BLOCK):
                out += block[skip:]
                skip = max(0, skip - len(block))
                if len(out) >= stop - start:
                    break
        return bytes(out[: stop - start])

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
            chain = _chain(error)
            reason = (
                _answered(chain, self.reference, self._host)
                or _unanswered(chain, self._host)
                or self._unexplained(chain, name)
            )
            raise HubError(f"{what}: {reason}") from error

    def _unexplained(self, chain: Sequence[BaseException], name: str | None) -> str:
        for link in chain:
            if isinstance(link, OSError) and (
                link.errno in _DISK or str(link.filename or "").startswith(str(self._cache))
            ):
                return (
                    f"the cache {self._cache} cannot be written: {link.strerror}; make room, or "
                    "set HF_HUB_CACHE to another directory"
                )
        if type(chain[0]) is OSError and name:  # how huggingface_hub says that the size is another
            return f"did not arrive whole from {self._host}; try again"
        problem = f"{self._host} did not answer as a hub does"
        if name:
            problem = f"could not be fetched from {self._host}"
        return (
            f"{problem} ({type(chain[0]).__name__}); try again, and check that HF_ENDPOINT is the "
            "address of a hub"
        )


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
    return found if COMMIT.fullmatch(found.name) else None


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


def _answered(chain: Sequence[BaseException], ref: HubReference, host: str) -> str | None:
    """What an answer that is an error means, and what to do about it."""
    from huggingface_hub import errors

    statuses = (getattr(getattr(link, "response", None), "status_code", None) for link in chain)
    status = next((number for number in statuses if number is not None), None)
    if _is_a(chain, errors.GatedRepoError):
        return (
            f"{ref.repo} is gated: ask for access on its page at {host}, then log in with "
            "`hf auth login` (or set HF_TOKEN)"
        )
    if _is_a(chain, errors.RevisionNotFoundError):
        slash = "; a '/' in its name is written %2F" if ref.path else ""
        return (
            f"there is no revision '{ref.revision}' of {ref.repo} on {host}; check the branch, tag "
            f"or commit{slash}"
        )
    if _is_a(chain, errors.RepositoryNotFoundError) or status == 401:
        return (
            f"there is no repository {ref.repo} on {host} that you may see; check the name or, if "
            "it is private, log in with `hf auth login` (or set HF_TOKEN)"
        )
    ways_out = {
        404: f"is not on {host} (any more); try again, or check HF_ENDPOINT",
        403: f"{host} refuses access to {ref.repo} (HTTP 403); log in with `hf auth login`, with a "
        "token that may read it",
        429: f"{host} has had too many requests (HTTP 429); wait some minutes, or log in with "
        "`hf auth login`",
    }
    if status is None:
        return None
    return ways_out.get(status, f"{host} failed with HTTP {status}; try again later")


def _unanswered(chain: Sequence[BaseException], host: str) -> str | None:
    """The same for no answer, or half of one."""
    from huggingface_hub import errors

    # the library that huggingface_hub stands on: httpx, or httpx2 since its version 2
    http: Any = import_module(errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0])
    if _is_a(chain, http.TimeoutException, TimeoutError):
        return f"{host} did not answer in time; try again later"
    if _is_a(chain, http.RemoteProtocolError, http.ReadError):
        return f"the connection to {host} broke off; try again"
    if _is_a(chain, http.NetworkError, http.ProxyError, ConnectionError):
        reasons = [e.strerror for e in chain if isinstance(e, OSError) and e.strerror]
        return (
            f"{host} cannot be reached{f' ({reasons[-1]})' if reasons else ''}; check the network, "
            "proxy settings and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use what was fetched before"
        )
    return None


def _is_a(chain: Sequence[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(link, kinds) for link in chain)


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what caused it, outermost first."""
    out: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in out:
        out.append(link)
        link = link.__cause__ or link.__context__
    return out
