"""Small files that come with an adapter, read whole: a configuration, a contract, a README."""

from __future__ import annotations

import stat
from pathlib import Path

from alora_gguf.errors import FileFormatError
from alora_gguf.gguf_header import describe_foreign


def read_small(path: Path, limit: int) -> bytes:
    """The bytes of a text file of at most `limit` bytes.

    Raises FileFormatError if it is missing, no ordinary file, larger, or not a text at all but
    something else saved under its name, such as a Git LFS pointer.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
            raise FileFormatError(f"{path}: is a directory, a pipe or a device, expected a file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise FileFormatError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else None
        raise FileFormatError(f"{path}: cannot be read: {reason or error}") from error
    if len(data) > limit:
        raise FileFormatError(
            f"{path}: has more than {limit} bytes, too many for a {path.name}; was another file "
            "saved under this name?"
        )
    known = describe_foreign(data[:64])
    if known:
        raise FileFormatError(f"{path}: is {known}")
    return data
