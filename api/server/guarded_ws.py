"""uvicorn's WebSocket protocol, which waits no longer than it may for a client that reads nothing."""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_LINGER_S = 10.0


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """For `uvicorn.Config(ws=GuardedWebSocket)`. To close waits for what is unsent: here, not for ever."""

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(_LINGER_S, self.transport.abort)
