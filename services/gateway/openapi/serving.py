"""The document that was made with the contract, at `/openapi.json`."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from starlette.responses import Response

from services.gateway.http import etags
from services.gateway.http.request import Call

PATH = "/openapi.json"
_REVALIDATE = "no-cache"


class OpenApiEndpoint:
    """Read once; a client that has it already is told so."""

    def __init__(self) -> None:
        self._document = (files("rlhf") / "openapi.json").read_bytes()
        self._etag = f'"{hashlib.sha256(self._document).hexdigest()[:32]}"'

    async def __call__(self, call: Call, captured: dict[str, str]) -> Response:
        headers = {"ETag": self._etag, "Cache-Control": _REVALIDATE}
        if etags.is_known(call.headers.get("if-none-match"), self._etag):
            return Response(status_code=304, headers=headers)
        return Response(self._document, headers=headers, media_type="application/json")
