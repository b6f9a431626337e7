"""What the tests of asyncio share: waiting for something, and watching whether the loop turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any


async def ticks(of: Awaitable[Any]) -> tuple[Any, float]:
    """What is awaited, and the longest time for which the loop did not turn meanwhile."""
    longest, over = 0.0, False

    async def tick() -> None:
        nonlocal longest
        while not over:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - began)

    ticker = asyncio.create_task(tick())
    try:
        return await of, longest
    finally:
        over = True
        await ticker


async def until(happened: Callable[[], bool]) -> None:
    while not happened():
        await asyncio.sleep(0.0005)
