"""Waiting for a notice neither misses one nor swallows the wish to stop."""

from __future__ import annotations

import asyncio

import pytest

from services.mesh.db.postgres import Notices, wait


async def test_wait_says_whether_it_was_woken() -> None:
    event = asyncio.Event()
    assert not await wait(event, 0.01)
    event.set()
    assert await wait(event, 10)
    assert not event.is_set()


@pytest.mark.parametrize("steps", range(5))
async def test_a_cancellation_that_comes_with_the_event_is_not_lost(steps: int) -> None:
    """asyncio.wait_for of Python 3.11 loses it at one of these points, and a worker would never stop."""
    event = asyncio.Event()

    async def loop() -> None:
        while True:
            await wait(event, 10)

    task = asyncio.create_task(loop())
    await asyncio.sleep(0.01)
    event.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=1)
    assert done
    assert task.cancelled()


async def test_a_notice_wakes_its_topic_only() -> None:
    notices = Notices("unused", "channel")
    with notices.subscribe("a", "b") as one, notices.subscribe("c") as other:
        notices._wake("b")
        assert one.is_set()
        assert not other.is_set()
    notices._wake("a")
    assert not notices._waiters
