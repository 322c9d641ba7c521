"""One WebSocket connection: uvicorn's on the `websockets` library, which compresses (permessage-deflate) and pings.

Its writing waits for the reader; its reading must wait too while that does, for it answers each ping it reads. A
handshake that the library takes for none is answered too, which the library leaves to us.
"""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import SecurityError
from websockets.http11 import MAX_LINE_LENGTH

from services.gateway.http.http1_protocol import answer, malformed, too_large


class WebSocketConnection(WebSocketsSansIOProtocol):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        error = self.conn.handshake_exc
        if self.handshake_initiated or error is None or self.transport.is_closing():
            return
        why = error.__cause__ or error
        is_large = isinstance(why, SecurityError)
        refusal = too_large(MAX_LINE_LENGTH, "the lines of a handshake") if is_large else malformed(str(why))
        self.transport.write(answer(refusal))
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()
