"""gzip and zstd: request bodies unpacked up to a limit, answers packed as `Accept-Encoding` allows.

Streams and downloads go out as they are: a stream's messages must not wait in a compressor, and the bytes of a download
are named by ranges. Source: RFC 9110, 8.4 and 12.5.3.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import re
import zlib

import zstandard
from starlette.responses import Response

CODINGS = ("zstd", "gzip")
# Below this the header costs more than is won.
MIN_BYTES = 1024
# From here on another thread does it, so that others need not wait.
_IN_A_THREAD_BYTES = 128 * 1024
_GZIP_LEVEL = 1
_ZSTD_LEVEL = 1
# What a decompressor may hold; RFC 8878 asks every one to bear it.
_MAX_WINDOW_BYTES = 8 * 1024 * 1024
_GZIP_WINDOW_BITS = 31
_MAX_MEMBERS = 16
_PACKABLE = re.compile(r"(text/.*|application/(.*\+)?(json|xml|javascript))(;.*)?", re.IGNORECASE)
_WEIGHT = re.compile(r"\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*", re.IGNORECASE)
_ALIASES = {"x-gzip": "gzip"}


class BadEncoding(ValueError):
    """The bytes are not what Content-Encoding says."""


class TooLarge(ValueError):
    """Unpacked, the body is over the limit."""


async def unpack(coding: str, body: bytes, limit_bytes: int) -> bytes:
    """The content of `body`, packed as `coding` of CODINGS. Never holds more than the limit and one byte.

    Raises BadEncoding and TooLarge.
    """
    unpacking = _gunzip if coding == "gzip" else _unzstd
    if len(body) < _IN_A_THREAD_BYTES:
        return unpacking(body, limit_bytes)
    return await asyncio.to_thread(unpacking, body, limit_bytes)


def _gunzip(body: bytes, limit_bytes: int) -> bytes:
    found = bytearray()
    members = 0
    try:
        while body:
            # Each member costs a copy of all that follows.
            members += 1
            if members > _MAX_MEMBERS:
                raise BadEncoding(f"it has more than {_MAX_MEMBERS} members")
            member = zlib.decompressobj(_GZIP_WINDOW_BITS)
            found += member.decompress(body, limit_bytes + 1 - len(found))
            if len(found) > limit_bytes:
                raise TooLarge
            if not member.eof:
                raise BadEncoding("it is cut off")
            body = member.unused_data
    except zlib.error as error:
        raise BadEncoding(str(error)) from None
    return bytes(found)


def _unzstd(body: bytes, limit_bytes: int) -> bytes:
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).stream_reader(
            body, read_across_frames=True
        )
        found = reader.read(limit_bytes + 1)
    except zstandard.ZstdError as error:
        raise BadEncoding(str(error)) from None
    if len(found) > limit_bytes:
        raise TooLarge
    if body and not found:
        # The reader takes a frame that is cut off for the end.
        raise BadEncoding("it is cut off")
    return found


@functools.lru_cache(maxsize=256)
def choose(accepted: str) -> str:
    """The coding of CODINGS that `Accept-Encoding` likes best, zstd where it does not mind; empty for none."""
    weights: dict[str, float] = {}
    for part in accepted.lower().split(","):
        name, _, parameter = part.strip().partition(";")
        found = _WEIGHT.fullmatch(parameter)
        name = name.strip()
        weights[_ALIASES.get(name, name)] = min(1.0, float(found[1])) if found else 1.0
    others = weights.get("*", 0.0)
    # What is not named counts as `*`; unpacked is always fine, yet may be liked better.
    unpacked = weights.get("identity", 0.0)
    best = max(CODINGS, key=lambda coding: weights.get(coding, others))
    weight = weights.get(best, others)
    return best if weight > 0 and weight >= unpacked else ""


async def pack(response: Response, accepted: str) -> None:
    """Pack the body of an answer in place, if it is worth it. `accepted` is the request's Accept-Encoding."""
    body = bytes(response.body)
    if len(body) < MIN_BYTES or not _is_packable(response):
        return
    response.headers.add_vary_header("Accept-Encoding")
    coding = choose(accepted)
    if not coding:
        return
    packed = _pack(coding, body) if len(body) < _IN_A_THREAD_BYTES else await asyncio.to_thread(_pack, coding, body)
    response.body = packed
    response.headers["Content-Encoding"] = coding
    response.headers["Content-Length"] = str(len(packed))
    if response.headers.get("etag", "").startswith('"'):
        # A strong one would be of the bytes before.
        response.headers["ETag"] = "W/" + response.headers["etag"]


def _is_packable(response: Response) -> bool:
    headers = response.headers
    return "content-encoding" not in headers and bool(_PACKABLE.fullmatch(headers.get("content-type", "")))


def _pack(coding: str, body: bytes) -> bytes:
    if coding == "gzip":
        return gzip.compress(body, _GZIP_LEVEL, mtime=0)
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(body)
