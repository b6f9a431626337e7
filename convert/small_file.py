"""Small files that come with an adapter, read whole: a configuration, a contract, a README."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, Final

from alora_gguf.errors import FileFormatError
from alora_gguf.gguf.header import describe_foreign

_MAX_JSON: Final = 16 << 20  # bytes; patterns with a line per module may make a configuration long


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


def read_object(path: Path) -> dict[str, Any]:
    """The fields of a JSON file that holds one object, unchecked.

    Raises FileFormatError as read_small() does, and if it is anything else.
    """
    try:
        fields = json.loads(read_small(path, _MAX_JSON).decode())
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{path}: is not JSON: {error}; download it again, or save it again"
        ) from None
    if not isinstance(fields, dict):
        raise FileFormatError(
            f"{path}: holds {type(fields).__name__}, expected a JSON object; download it again, or "
            "save it again"
        )
    return fields
