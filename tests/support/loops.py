"""What the tests of asyncio share: waiting for something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(happened: Callable[[], bool]) -> None:
    while not happened():
        await asyncio.sleep(0.0005)
