"""A relay to Redis that can be cut for one node only, or lose a reply."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit


class Relay:
    """Passes bytes on between its clients and the server at `url`."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url).port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut = False
        self._losing = b""  # the next request with this is passed on, its reply lost with the connection
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.cut()
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break all connections, refuse new ones."""
        self._cut = True
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        self._cut = False

    def lose_the_answer_to(self, request: bytes) -> None:
        self._losing = request

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            if self._cut:
                return
            back, upstream = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(upstream)
            answers = asyncio.create_task(self._pass_on(back, writer))
            await self._pass_requests(reader, upstream, answers)
            answers.cancel()
            with suppress(asyncio.CancelledError):
                await answers
        except OSError:
            return
        finally:
            for end in (writer, upstream):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _pass_requests(
        self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, answers: asyncio.Task[None]
    ) -> None:
        while data := await reader.read(65536):
            if self._losing and self._losing in data:
                self._losing = b""
                answers.cancel()
                upstream.write(data)
                await upstream.drain()
                # A reply shows that it was executed; it is discarded.
                await asyncio.sleep(0.2)
                return
            upstream.write(data)
            await upstream.drain()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
