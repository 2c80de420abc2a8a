"""uvicorn's WebSocket protocol: takes over a connection, and closes within a limited time."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from api.http.errors import RequestRefused
from api.server.limits import malformed_handshake

_LINGER_S = 10.0


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """For `uvicorn.Config(ws=GuardedWebSocket)`. Closing waits for unsent data: here, for at most 10 s."""

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(_LINGER_S, self.transport.abort)


def start_websocket(
    transport: asyncio.Transport, head: bytes, config: Config, state: ServerState, app_state: dict[str, Any]
) -> None:
    """Give a connection to the WebSocket protocol, with a handshake's head. Raises RequestRefused."""
    protocol = cast(Any, config.ws_protocol_class)(config=config, server_state=state, app_state=app_state)
    protocol.connection_made(transport)
    protocol.data_received(head)
    if not protocol.handshake_initiated and not transport.is_closing():
        state.connections.discard(protocol)  # it has rejected the head without answering or closing
        why = "it has a body, a line of more than 8 KiB, or characters that HTTP does not allow"
        raise RequestRefused(malformed_handshake(why))
    transport.set_protocol(protocol)
