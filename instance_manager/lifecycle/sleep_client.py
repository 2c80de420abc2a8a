"""Sends the HTTP calls that put an engine to sleep and wake it. Changes no state."""

from __future__ import annotations

import httpx

from instance_manager.backends.sleep_style import EngineCall, SleepStyle
from instance_manager.lifecycle.bounded_fetch import EngineResponse, fetch

SLEEP_LEVELS = (1, 2)
_MAX_RESPONSE_BYTES = 1024 * 1024


class SleepRefused(Exception):
    """The engine could not be put to sleep or woken; the message quotes its response."""


class SleepClient:
    """The sleep calls of one engine process."""

    def __init__(
        self, client: httpx.AsyncClient, base_url: str, api_key: str, style: SleepStyle, model: str
    ) -> None:
        self._client = client
        self._base_url = base_url
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._style = style
        self._model = model

    async def sleep(self, level: int) -> None:
        """No request may be in flight. Raises SleepRefused."""
        for call in self._style.to_sleep(level):
            await self._send(call)

    async def wake(self, level: int) -> None:
        """Wake it from `level`. Raises SleepRefused; the engine is unusable then."""
        for call in self._style.to_wake(level, self._model):
            await self._send(call)

    async def is_asleep(self) -> bool:
        """What the engine itself reports. Raises SleepRefused."""
        call = self._style.status
        try:
            response = await self._fetch(call)
            if not response.is_ok:
                raise SleepRefused(f"{call.path} was answered with {response.status}")
            return self._style.reads_asleep(response.body)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise SleepRefused(f"{call.path}: {error!r}") from error

    async def _send(self, call: EngineCall) -> None:
        try:
            response = await self._fetch(call)
        except httpx.HTTPError as error:
            raise SleepRefused(f"{call.path}: {error!r}") from error
        if not 200 <= response.status < 300:
            raise SleepRefused(f"{call.path} was answered with {response.status}: {response.text(500)}")

    async def _fetch(self, call: EngineCall) -> EngineResponse:
        return await fetch(
            self._client,
            call.method,
            self._base_url + call.path,
            headers=self._headers,
            timeout_s=call.timeout_s,
            max_bytes=_MAX_RESPONSE_BYTES,
            params=call.query,
            body=call.body,
        )
