"""The same proxy with aiohttp as its client, FastAPI in front: `serve_aiohttp PORT UPSTREAM_PORT`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import aiohttp
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

_NOT_COPIED = {"content-length", "transfer-encoding", "connection"}


def create_app(upstream_port: int) -> FastAPI:
    app = FastAPI()
    base = f"http://127.0.0.1:{upstream_port}"
    sessions: list[aiohttp.ClientSession] = []

    def session() -> aiohttp.ClientSession:
        if not sessions:  # aiohttp requires a running loop
            connector = aiohttp.TCPConnector(limit=0)
            sessions.append(
                aiohttp.ClientSession(
                    connector=connector,
                    auto_decompress=False,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=aiohttp.ClientTimeout(total=None),
                )
            )
        return sessions[0]

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def proxy(path: str, request: Request) -> StreamingResponse:
        incoming = await session().request(
            request.method,
            f"{base}/{path}?{request.url.query}",
            headers={name: value for name, value in request.headers.items() if name != "host"},
            data=await request.body(),
        )
        headers = {name: value for name, value in incoming.headers.items() if name.lower() not in _NOT_COPIED}

        async def body() -> AsyncIterator[bytes]:
            async with incoming:
                async for piece in incoming.content.iter_any():
                    yield piece

        return StreamingResponse(body(), status_code=incoming.status, headers=headers)

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(int(sys.argv[2])), port=int(sys.argv[1]), log_level="warning", access_log=False)
