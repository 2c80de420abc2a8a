"""Which paths name a model in their body, and which of their requests may take the fast path."""

from __future__ import annotations

from api.gateway.gateway import Gateway
from api.http.asgi import Scope
from api.http.dispatch import raw_path
from api.http.response_channel import ResponseChannel, ResumeAsTask


class ModelRoutes:
    """The gateway's paths, and those of protocols that are translated to OpenAI's."""

    def __init__(self, gateway: Gateway, translated: frozenset[bytes], *, has_fast_path: bool) -> None:
        """`has_fast_path`: False if something in front of the gateway must see every request."""
        self._gateway = gateway
        self._translated = translated
        self._has_fast_path = has_fast_path

    def is_for(self, scope: Scope) -> bool:
        return Gateway.is_for(scope) or raw_path(scope) in self._translated

    def begin(
        self, scope: Scope, body: bytes, channel: ResponseChannel, resume_as_task: ResumeAsTask
    ) -> bool:
        """As `Gateway.begin`."""
        if not self._has_fast_path or raw_path(scope) in self._translated:
            return False
        return self._gateway.begin(scope, body, channel, resume_as_task)
