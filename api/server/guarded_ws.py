"""uvicorn's WebSocket protocol: takes over a connection, and closes within a limited time."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

_LINGER_S = 10.0


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """For `uvicorn.Config(ws=GuardedWebSocket)`. Closing waits for unsent data: here, for at most 10 s."""

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(_LINGER_S, self.transport.abort)


def hand_over(
    transport: asyncio.Transport, head: bytes, config: Config, state: ServerState, app_state: dict[str, Any]
) -> bool:
    """Give the connection to the WebSocket protocol, which gets the handshake's head.

    False: it has rejected the head without answering or closing, and has not taken the connection.
    """
    protocol = cast(Any, config.ws_protocol_class)(config=config, server_state=state, app_state=app_state)
    protocol.connection_made(transport)
    protocol.data_received(head)
    if protocol.handshake_initiated or transport.is_closing():
        transport.set_protocol(protocol)
        return True
    state.connections.discard(protocol)
    return False
