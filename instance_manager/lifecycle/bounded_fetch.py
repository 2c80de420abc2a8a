"""Berth's own requests to engines, bounded in size and time, without decompression or redirects.

An engine may be any program. A broken or hostile one may send an endless response, a byte a second, a
decompression bomb or a redirect: none of them may cost more than a normal response.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx


class ResponseTooLong(httpx.HTTPError):
    """The response exceeds the size limit; the message names the limit."""


@dataclass(frozen=True, slots=True)
class EngineResponse:
    """A complete response, not decoded."""

    status: int
    body: bytes

    @property
    def is_ok(self) -> bool:
        return self.status == httpx.codes.OK

    def text(self, max_chars: int) -> str:
        """The first `max_chars` characters, for messages."""
        return self.body[: 4 * max_chars].decode("utf-8", "replace")[:max_chars]


def engine_client(timeout_s: float) -> httpx.AsyncClient:
    """An HTTP client that ignores proxy variables and redirects and keeps neither connections nor cookies."""
    return httpx.AsyncClient(
        verify=False,  # noqa: S501 - spares loading the certificates; it is plain HTTP on loopback
        trust_env=False,
        follow_redirects=False,
        timeout=timeout_s,
        limits=httpx.Limits(max_keepalive_connections=0),
        headers={"Accept-Encoding": "identity"},
        # An engine's cookie would be sent to every other one: cookies don't distinguish ports.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


async def fetch(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    timeout_s: float,
    max_bytes: int,
    params: Mapping[str, str] | None = None,
    body: Mapping[str, object] | None = None,
) -> EngineResponse:
    """The complete response within `timeout_s`. Raises httpx.HTTPError: ResponseTooLong, ReadTimeout …"""
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream(
                method, url, headers=dict(headers), params=params, json=body, timeout=timeout_s
            ) as response,
        ):
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > max_bytes:
                    raise ResponseTooLong(f"the response exceeds {max_bytes >> 10} KiB")
            return EngineResponse(response.status_code, bytes(content))
    except TimeoutError:
        raise httpx.ReadTimeout(f"no complete response within {timeout_s:g} s") from None
