"""What Berth itself asks engines for: read up to a bound, in time, undecoded, from where it was asked.

An engine may be any program. A broken or hostile one answers without end, a byte a second, packed a
thousandfold, or with a way to somewhere else: that may cost no more than an answer that is to be expected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx


class ResponseTooLong(httpx.HTTPError):
    """The engine answers with more than is taken; the message says how much that is."""


@dataclass(frozen=True, slots=True)
class Answer:
    """All of an answer, as it came."""

    status: int
    body: bytes

    @property
    def is_ok(self) -> bool:
        return self.status == httpx.codes.OK

    def text(self, max_chars: int) -> str:
        """The beginning, for people."""
        return self.body[: 4 * max_chars].decode("utf-8", "replace")[:max_chars]


def engine_client(timeout_s: float) -> httpx.AsyncClient:
    """The client for all of it: it minds no proxy variables, keeps no connections, redirects or cookies."""
    return httpx.AsyncClient(
        verify=False,  # noqa: S501 - spares loading the certificates; it is plain HTTP on loopback
        trust_env=False,
        follow_redirects=False,
        timeout=timeout_s,
        limits=httpx.Limits(max_keepalive_connections=0),
        headers={"Accept-Encoding": "identity"},
        # An engine's cookie would go to every other one: they don't tell ports apart.
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
) -> Answer:
    """One answer, whole within `timeout_s`. Raises httpx.HTTPError: ResponseTooLong, ReadTimeout …"""
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream(
                method, url, headers=dict(headers), params=params, json=body, timeout=timeout_s
            ) as response,
        ):
            read = bytearray()
            async for piece in response.aiter_raw():
                read += piece
                if len(read) > max_bytes:
                    raise ResponseTooLong(f"it answers with more than {max_bytes >> 10} KiB")
            return Answer(response.status_code, bytes(read))
    except TimeoutError:
        raise httpx.ReadTimeout(f"no whole answer within {timeout_s:g} s") from None
