"""The usual proxy of tutorials, FastAPI with httpx: `serve_httpx PORT UPSTREAM_PORT`."""

from __future__ import annotations

import sys

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

_NOT_COPIED = {"content-length", "transfer-encoding", "connection"}


def create_app(upstream_port: int) -> FastAPI:
    app = FastAPI()
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{upstream_port}", timeout=None)  # noqa: S113 - as the usual recipe for a proxy has it

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def proxy(path: str, request: Request) -> StreamingResponse:
        outgoing = client.build_request(
            request.method,
            f"/{path}",
            params=request.query_params,
            headers=[(name, value) for name, value in request.headers.raw if name != b"host"],
            content=await request.body(),
        )
        incoming = await client.send(outgoing, stream=True)
        headers = {name: value for name, value in incoming.headers.items() if name not in _NOT_COPIED}
        return StreamingResponse(
            incoming.aiter_raw(),
            status_code=incoming.status_code,
            headers=headers,
            background=BackgroundTask(incoming.aclose),
        )

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(int(sys.argv[2])), port=int(sys.argv[1]), log_level="warning", access_log=False)
