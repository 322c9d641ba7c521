"""Routines of a process end when it stops, even one that misses its first cancellation."""

from __future__ import annotations

import asyncio
import contextlib

from services.mesh.rpc.server import Process


async def test_routine_that_swallows_a_cancellation_is_stopped() -> None:
    swallowed = []

    async def deaf_once() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        swallowed.append(True)
        await asyncio.sleep(3600)

    process = Process("test")
    process.add_routine("deaf", deaf_once)
    await process.start()
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await process.stop()
    assert swallowed
