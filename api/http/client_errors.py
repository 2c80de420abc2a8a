"""What a client does wrong while its request is read or answered."""

from __future__ import annotations

CLIENT_GONE = 499  # status in metrics and access log when the client has disconnected, as in nginx


class ClientGone(Exception):
    """The client has disconnected."""


class WrongBody(Exception):
    """The rest of the client's body is invalid; its `receive` raises this from then on."""

    code = "invalid_form"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
