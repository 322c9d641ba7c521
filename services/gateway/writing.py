"""Writing to a call that the other side may end at any moment."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
from grpc._cython import cygrpc

# What a failed batch of operations raises; not in the stubs.
_BATCH_FAILED: Any = cygrpc.InternalError  # pyright: ignore[reportAttributeAccessIssue]
_ENDED = (_BATCH_FAILED, asyncio.InvalidStateError, grpc.aio.AioRpcError)


async def send(call: Any, message: bytes) -> bool:
    """Write one message, in bytes, to a streaming call, as fast as it is taken. False when the call has ended.

    `call.write` is not used: when the service ends the call while a message is on its way, it replaces the status that
    the service sent by INTERNAL "Internal error from Core" (grpcio 1.85, aio/_call.py, `_write`). So this does what
    `write` does and leaves the status alone. Serializers of the call are not applied.
    """
    try:
        await call.wait_for_connection()
        if call.done():
            return False
        await call._cython_call.send_serialized_message(message)
    except _ENDED:
        return False
    return True


async def finish(call: Any) -> None:
    """Say that no more will be written; nothing when the call has ended."""
    with contextlib.suppress(*_ENDED):
        await call.done_writing()
