"""Berth over HTTP. Errors become a `CliError`; httpx is imported with the first `Server`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from cli.errors import CliError, ExitCode, wrong_use
from cli.reach import WHERE, not_http, unreachable
from cli.refusals import refusal

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event; its data lines are joined."""

    type: str
    data: str


class Server:
    """One server, by its URL. Every method may raise CliError; time-outs are in seconds, None = none."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        # httpx's own command line, with all that it imports, takes a sixth of the time of one of ours.
        sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
        import httpx

        self.url = checked_url(url)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # Proxies apply to remote servers only, never to one on this machine.
        self._trust_env = urlsplit(self.url).hostname not in _LOOPBACK
        self._http = httpx.Client(base_url=self.url, headers=self._headers, trust_env=self._trust_env)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def async_client(self, limits: httpx.Limits, timeout: httpx.Timeout) -> httpx.AsyncClient:
        """For many parallel requests; raises httpx's own errors."""
        import httpx

        return httpx.AsyncClient(
            base_url=self.url,
            headers=self._headers,
            trust_env=self._trust_env,
            limits=limits,
            timeout=timeout,
        )

    def get(self, path: str, *, timeout_s: float | None = READ_TIMEOUT_S, **params: Any) -> Any:
        return self.request("GET", path, params=params, timeout_s=timeout_s)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        timeout_s: float | None = READ_TIMEOUT_S,
    ) -> Any:
        """The response's JSON; None if it has no body (204)."""
        with self.stream(method, path, params=params, body=body, timeout_s=timeout_s) as response:
            with self._reaching(timeout_s):
                content = response.read()
            return self._parsed(content) if content else None

    def text(self, path: str, **params: Any) -> str:
        """The response as text."""
        timeout_s = READ_TIMEOUT_S
        with (
            self.stream("GET", path, params=params, timeout_s=timeout_s) as response,
            self._reaching(timeout_s),
        ):
            return response.read().decode("utf-8", "replace")

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        timeout_s: float | None = None,
    ) -> Iterator[httpx.Response]:
        """A response with an unread body; leaving the block closes the connection."""
        import httpx

        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        with self._reaching(timeout_s):
            try:
                request = self._http.build_request(
                    method, path, params=_given(params), json=body, timeout=timeout
                )
            except ValueError as exc:  # an argument that isn't UTF-8
                raise wrong_use(f"this can't be sent: {exc}") from None
            response = self._http.send(request, stream=True)
        try:
            if not response.is_success:
                with self._reaching(timeout_s):
                    content = response.read()
                raise self._refused(response, content)
            yield response
        finally:
            response.close()

    def lines(self, response: httpx.Response) -> Iterator[str]:
        """The body's lines as they arrive. Only a newline ends a line: JSON may contain other separators."""
        rest = b""
        with self._reaching():
            for piece in response.iter_bytes():
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    yield line.decode("utf-8", "replace").removesuffix("\r")
        if rest:
            yield rest.decode("utf-8", "replace")

    def json_lines(self, response: httpx.Response) -> Iterator[Any]:
        """The body as NDJSON."""
        for line in self.lines(response):
            if line.strip():
                yield self._parsed(line)

    def events(self, response: httpx.Response) -> Iterator[Event]:
        """The body as server-sent events; comments, which keep the connection alive, are ignored."""
        kind, data = "message", list[str]()
        for line in self.lines(response):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "event":
                kind = value
            elif not line:
                if data:
                    yield Event(kind, "\n".join(data))
                kind, data = "message", []

    def _parsed(self, content: str | bytes) -> Any:
        try:
            return json.loads(content)
        except ValueError:
            message = f"{self.url} answered with something that isn't JSON"
            raise CliError(message, ExitCode.UNREACHABLE, next_step=WHERE) from None

    def _refused(self, response: httpx.Response, content: bytes) -> CliError:
        try:
            body = json.loads(content)
        except ValueError:
            body = None
        retry_after = response.headers.get("retry-after")
        return refusal(response.status_code, body, url=self.url, retry_after=retry_after)

    @contextmanager
    def _reaching(self, timeout_s: float | None = None) -> Iterator[None]:
        """The only place where httpx's errors are translated."""
        import httpx

        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise unreachable(self.url, exc) from None
        except httpx.TimeoutException:
            raise CliError(
                f"{self.url} didn't respond within {timeout_s:g} s",
                ExitCode.UNREACHABLE,
                next_step="`berth info` shows whether it still responds",
            ) from None
        except httpx.RemoteProtocolError as exc:
            raise not_http(self.url, exc) from None
        except httpx.TransportError as exc:
            raise CliError(
                f"the connection to {self.url} broke ({exc or type(exc).__name__})",
                ExitCode.UNREACHABLE,
                next_step="`berth info` shows whether it still responds",
            ) from None


def checked_url(url: str) -> str:
    """A server's complete URL; accepts `host:port`. Raises CliError."""
    full = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(full)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise wrong_use(f"{url!r} is not a valid URL for Berth", "it must look like http://127.0.0.1:5000")
    return full


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Query parameters without those that are None."""
    return {key: value for key, value in (params or {}).items() if value is not None}
