"""What a failure below huggingface_hub means for the person who waits, and what to do about it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from alora_gguf.errors import AloraError, ConvertError, InputError

from .hub_reference import FORM, HubReference

_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # these may name no file
# by name, because requests and two versions of httpx each have their own
_TIMEOUTS: Final = {"TimeoutException", "Timeout", "TimeoutError"}
_CONNECTIONS: Final = {"NetworkError", "ConnectError", "ConnectionError", "ProxyError"}
_CUT_SHORT: Final = {"RemoteProtocolError", "ChunkedEncodingError", "ReadError"}


def explain(
    error: Exception, reference: HubReference, *, host: str, cache: Path, name: str | None
) -> AloraError:
    """Our error for one that huggingface_hub raised while it asked `host` for the repository or,
    with `name`, for a file of it.
    """
    chain = _chain(error)
    what = f"{reference.text}: '{name}'" if name else reference.text
    known = _answered(chain, reference, host, what) or _unanswered(chain, host, what)
    if known:
        return known
    for link in chain:
        if isinstance(link, OSError) and (
            link.errno in _DISK or str(link.filename or "").startswith(str(cache))
        ):
            return ConvertError(
                f"{what}: the cache {cache} cannot be written: {link.strerror}; make room, or set "
                "HF_HUB_CACHE to another directory"
            )
    if type(error) is OSError and name:  # how huggingface_hub says that the size is another
        return ConvertError(f"{what}: did not arrive whole from {host}; try again")
    problem = (
        f"could not be fetched from {host}" if name else f"{host} did not answer as a hub does"
    )
    return ConvertError(
        f"{what}: {problem} ({type(error).__name__}); try again, and check that HF_ENDPOINT is the "
        "address of a hub"
    )


def _answered(
    chain: list[BaseException], reference: HubReference, host: str, what: str
) -> AloraError | None:
    """For an answer that is an error."""
    from huggingface_hub import errors

    statuses = (getattr(getattr(link, "response", None), "status_code", None) for link in chain)
    status = next((number for number in statuses if number is not None), None)

    def is_a(kind: type[BaseException]) -> bool:
        return any(isinstance(link, kind) for link in chain)

    if is_a(errors.GatedRepoError):
        return ConvertError(
            f"{what}: {reference.repo} is gated: ask for access on its page at {host}, then log in "
            "with `hf auth login` (or set HF_TOKEN)"
        )
    if is_a(errors.RevisionNotFoundError):
        hint = f"; a path comes before the revision, as in {FORM}"
        return InputError(
            f"{what}: there is no revision '{reference.revision}' of {reference.repo} on {host}"
            f"{hint if '/' in (reference.revision or '') else '; check the branch, tag or commit'}"
        )
    if is_a(errors.RepositoryNotFoundError) or status == 401:
        return InputError(
            f"{what}: there is no repository {reference.repo} on {host} that you may see; check "
            "the name or, if it is private, log in with `hf auth login` (or set HF_TOKEN)"
        )
    if status == 404:
        return ConvertError(f"{what}: is not on {host} (any more); try again, or check HF_ENDPOINT")
    if status == 403:
        return ConvertError(
            f"{what}: {host} refuses access to {reference.repo} (HTTP 403); log in with `hf auth "
            "login`, with a token that may read it"
        )
    if status == 429:
        return ConvertError(
            f"{what}: {host} has had too many requests (HTTP 429); wait some minutes, or log in "
            "with `hf auth login`"
        )
    if status is not None:
        return ConvertError(f"{what}: {host} failed with HTTP {status}; try again later")
    return None


def _unanswered(chain: list[BaseException], host: str, what: str) -> AloraError | None:
    """For no answer, or half of one."""
    names = {base.__name__ for link in chain for base in type(link).__mro__}
    if "OfflineModeIsEnabled" in names:
        return ConvertError(
            f"{what}: HF_HUB_OFFLINE keeps it from being fetched; unset it, or fetch once while "
            "there is a network"
        )
    if names & _TIMEOUTS:
        return ConvertError(f"{what}: {host} did not answer in time; try again later")
    if names & _CUT_SHORT:
        return ConvertError(f"{what}: the connection to {host} broke off; try again")
    if names & _CONNECTIONS:
        reasons = [link.strerror for link in chain if isinstance(link, OSError) and link.strerror]
        return ConvertError(
            f"{what}: {host} cannot be reached{f' ({reasons[-1]})' if reasons else ''}; check the "
            "network, proxy settings and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use what was "
            "fetched before"
        )
    return None


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what caused it, outermost first."""
    out: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in out:
        out.append(link)
        link = link.__cause__ or link.__context__
    return out
