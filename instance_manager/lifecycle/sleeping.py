"""How engines are put to sleep and woken: the calls, in the order that is safe. Moves no state.

Names are vLLM's. Waking a vLLM from level 2 by `/wake_up` alone leaves it with weights that were never
loaded, while its `/health` says 200: so they are loaded in between, and one token is asked for at the end.
"""

from __future__ import annotations

from collections.abc import Mapping

import httpx
from pydantic_core import from_json

from instance_manager.backends.base import SleepStyle
from instance_manager.lifecycle.bounded_fetch import Answer, fetch

SLEEP_LEVELS = (1, 2)
_MAX_ANSWER_BYTES = 1024 * 1024
_ASK_TIMEOUT_S = 5.0
_SLEEP_TIMEOUT_S = 120.0
_WAKE_TIMEOUT_S = 600.0


class SleepRefused(Exception):
    """The engine could not be put to sleep or woken; the message says what it answered."""


class SleepController:
    """One engine process's sleep calls."""

    def __init__(
        self, client: httpx.AsyncClient, base_url: str, api_key: str, style: SleepStyle, model: str
    ) -> None:
        self._client = client
        self._base_url = base_url
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._style = style
        self._model = model

    async def sleep(self, level: int) -> None:
        """Nothing may be in flight. Raises SleepRefused."""
        await self._post("/sleep", {"level": str(level)}, _SLEEP_TIMEOUT_S)

    async def wake(self, level: int) -> None:
        """From that level. Raises SleepRefused; the engine is of no use then."""
        if self._style is SleepStyle.VLLM and level > 1:
            await self._post("/wake_up", {"tags": "weights"}, _WAKE_TIMEOUT_S)
            await self._post("/collective_rpc", {}, _WAKE_TIMEOUT_S, {"method": "reload_weights"})
            await self._post("/wake_up", {"tags": "kv_cache"}, _WAKE_TIMEOUT_S)
        else:
            await self._post("/wake_up", {}, _WAKE_TIMEOUT_S)
        if self._style is SleepStyle.VLLM:
            probe = {"model": self._model, "prompt": "a", "max_tokens": 1, "temperature": 0}
            await self._post("/v1/completions", {}, _SLEEP_TIMEOUT_S, probe)

    async def is_asleep(self) -> bool:
        """What the engine says itself. Raises SleepRefused."""
        try:
            answer = await self._fetch("GET", "/is_sleeping", _ASK_TIMEOUT_S)
            if not answer.is_ok:
                raise SleepRefused(f"/is_sleeping was answered with {answer.status}")
            return bool(from_json(answer.body)["is_sleeping"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise SleepRefused(f"/is_sleeping: {error!r}") from error

    async def _post(
        self, path: str, query: Mapping[str, str], timeout_s: float, body: Mapping[str, object] | None = None
    ) -> None:
        try:
            answer = await self._fetch("POST", path, timeout_s, query, body)
        except httpx.HTTPError as error:
            raise SleepRefused(f"{path}: {error!r}") from error
        if not 200 <= answer.status < 300:
            raise SleepRefused(f"{path} was answered with {answer.status}: {answer.text(500)}")

    async def _fetch(
        self,
        method: str,
        path: str,
        timeout_s: float,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> Answer:
        return await fetch(
            self._client,
            method,
            self._base_url + path,
            headers=self._headers,
            timeout_s=timeout_s,
            max_bytes=_MAX_ANSWER_BYTES,
            params=query,
            body=body,
        )
