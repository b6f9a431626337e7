"""How a program of this example ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from alora_gguf import AloraError


def run(main: Callable[[], int]) -> NoReturn:
    """Exits with main's status; with 1 and one sentence where a file is at fault, with 130 for
    Ctrl-C.
    """
    try:
        sys.exit(main())
    except (AloraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
