"""uvicorn's WebSocket protocol with a limit on how long closing waits for a client that reads nothing."""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_LINGER_S = 10.0


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """For `uvicorn.Config(ws=GuardedWebSocket)`. Closing waits for unsent data: here, for at most 10 s."""

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(_LINGER_S, self.transport.abort)
