"""The web page that `hatch_build.py` makes of `web/`: static files, which need no token because they hold no secret.

What is called `assets/…` bears a hash of its content in its name and is kept by browsers for ever; the pages themselves
are asked for anew each time, and are answered with 304 where nothing has changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

from starlette.responses import PlainTextResponse, Response

from services.gateway.http import etags
from services.gateway.http.request import Call, Endpoint
from services.gateway.transcoding.path_templates import PathTemplate
from services.mesh.errors import NotFound

FOLDER = Path(__file__).parents[1] / "web" / "dist"
# First parts of the paths that the page's own router knows (web/src/router.ts): a reload of one is the page again.
_AREAS = ("jobs", "datasets", "models")
_ASSETS = "/assets/"
_DOCS = "/docs"
# The grammar of templates has none for the bare path: its one segment is empty.
_ROOT = PathTemplate("/", ("",), "", ())
# Nothing but this server's own files and answers. Styles: only from files; what scripts set through the object model
# needs no leave. Images: drawings within a style sheet of the API page are data: addresses.
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HASHED = re.compile(r".+-[A-Za-z0-9_-]{8}\.[a-z0-9]+")
_NOT_BUILT = """\
The web page of this mesh was not built; everything else works.

From a checkout:   pip install -e .
The page alone:    python hatch_build.py
Meanwhile:         the rlhf command, HTTP under /v1, its description at /openapi.json
"""


def is_open(path: str) -> bool:
    """Whether a path is one of the page's, for which nobody is asked for a token."""
    area = path.split("/", 2)[1] if path.startswith("/") else ""
    return path == "/" or path == _DOCS or area in _AREAS or path.startswith(_ASSETS)


def page_routes() -> Iterator[tuple[PathTemplate, Endpoint]]:
    """Path template and endpoint of each; all are for GET."""
    page = Page(FOLDER, "index.html")
    yield _ROOT, page
    for area in _AREAS:
        yield PathTemplate.parse(f"/{area}"), page
        yield PathTemplate.parse(f"/{area}/**"), page
    yield PathTemplate.parse(_DOCS), Page(FOLDER, "docs.html")
    yield PathTemplate.parse(_ASSETS + "{file=*}"), Asset(FOLDER / "assets")


class Page:
    """One HTML file, whatever path it is asked for at."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / name

    async def __call__(self, call: Call, captured: dict[str, str]) -> Response:
        try:
            content = await asyncio.to_thread(self._path.read_bytes)
        except FileNotFoundError:
            return PlainTextResponse(_NOT_BUILT, HTTPStatus.NOT_FOUND, {"Cache-Control": "no-store"})
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": _POLICY}
        if etags.is_known(call.headers.get("if-none-match"), tag):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(content, headers=headers, media_type="text/html")


class Asset:
    """A script, a style sheet or a picture."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def __call__(self, call: Call, captured: dict[str, str]) -> Response:
        """Raises NotFound; a name that is none of a file directly in the folder is not looked for."""
        name = captured["file"]
        names = await asyncio.to_thread(self._names)
        if name not in names:
            raise NotFound("FILE_NOT_FOUND", "the page has no such file; reload the page", name=name[:200])
        content = await asyncio.to_thread((self._folder / name).read_bytes)
        kept = "public, max-age=31536000, immutable" if _HASHED.fullmatch(name) else "no-cache"
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        # A worker has the policy of its own script.
        headers = {"Cache-Control": kept, "Content-Security-Policy": _POLICY}
        return Response(content, headers=headers, media_type=media_type)

    def _names(self) -> set[str]:
        return {path.name for path in self._folder.iterdir() if path.is_file()} if self._folder.is_dir() else set()
