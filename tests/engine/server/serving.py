"""Runs a complete server with any core in a thread of the test process, on its own port."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvloop
from openai import AsyncOpenAI, OpenAI

from engine.config import EngineConfig, ServerConfig
from engine.core.async_engine import AsyncEngine
from engine.core.batch import Batch
from engine.core.engine_core import EngineCore
from engine.errors import EngineError
from engine.pooling.engine import PoolingEngine
from engine.server.app.serve import Loading, serve
from engine.server.http.listener import listen
from engine.text.tokenizer import Tokenizer, load_tokenizer
from tests.engine.fake_runner import FakeRunner
from tests.engine.server.tokenizers_for_tests import byte_level_tokenizer, write_tokenizer_files

WAIT_S = 60
MAX_MODEL_LEN = 200
EOS = 0


@dataclass
class Running:
    """A server under test. `engine` belongs to the server's event loop: only read it."""

    port: int
    engine: AsyncEngine
    model_name: str
    _loop: asyncio.AbstractEventLoop
    _stop: asyncio.Event
    _thread: threading.Thread
    failure: EngineError | None = None  # raised by `serve`

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=WAIT_S, trust_env=False, **options)

    def openai(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=WAIT_S)

    def async_openai(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=WAIT_S)

    def stop(self) -> None:
        """Stop as on SIGTERM, without waiting."""
        with suppress(RuntimeError):  # its loop is closed: the server has already ended
            self._loop.call_soon_threadsafe(self._stop.set)

    def join(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def wait_idle(self) -> None:
        """Wait until the engine has no requests."""
        wait_until(lambda: self.engine.num_unfinished == 0 and self.engine.stats().kv_cache_usage == 0)


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll a condition for which there is no event, such as another thread's state."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def write_fake_model(directory: Path, **config: Any) -> Path:
    """Write the files of a checkpoint that the server itself reads."""
    write_tokenizer_files(directory, byte_level_tokenizer(), **config)
    (directory / "config.json").write_text(
        json.dumps({"vocab_size": byte_level_tokenizer().get_vocab_size()})
    )
    return directory


def fake_core(
    directory: Path, *, before: Callable[[Batch], None] | None = None, num_blocks: int = 512
) -> Callable[[], EngineCore]:
    """A core whose runner has 40 tokens: special tokens, letters and bytes of multi-byte characters."""
    config = EngineConfig(model=directory, max_num_seqs=8, max_num_batched_tokens=64)
    runner = FakeRunner(num_blocks=num_blocks, before=before)
    return lambda: EngineCore.from_config(config, runner, max_model_len=MAX_MODEL_LEN, eos_token_ids=[EOS])


@contextmanager
def running(
    directory: Path,
    build_core: Callable[[], EngineCore] | PoolingEngine,
    *,
    wait_ready: bool = True,
    max_num_seqs: int = 8,
    tokenizer: Tokenizer | None = None,
    **options: Any,
) -> Iterator[Running]:
    """Serve until the block ends, and check that nothing is left over. `tokenizer`: not the directory's."""
    config = ServerConfig(**{"port": 0, "served_model_names": ("fake", "other-name"), **options})
    before = set(threading.enumerate())
    started: Future[Running] = Future()
    ready = threading.Event()
    thread = threading.Thread(
        target=lambda: _run(_serve(directory, build_core, config, max_num_seqs, tokenizer, started, ready)),
        name="server-under-test",
    )
    thread.start()
    server = started.result(WAIT_S)
    try:
        if wait_ready:
            assert ready.wait(WAIT_S)
        yield server
    finally:
        server.stop()
        server.join()
        for other in {thread for thread in threading.enumerate() if thread.name == "engine"} - before:
            other.join(WAIT_S)
            assert not other.is_alive()


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop, like `python -m engine`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


async def _serve(
    directory: Path,
    build_core: Callable[[], EngineCore] | PoolingEngine,
    config: ServerConfig,
    max_num_seqs: int,
    own_tokenizer: Tokenizer | None,
    started: Future[Running],
    ready: threading.Event,
) -> None:
    listener = listen(config.host, config.port)
    engine: Any = build_core if isinstance(build_core, PoolingEngine) else AsyncEngine(build_core)
    tokenizer: Future[Tokenizer] = Future()
    tokenizer.set_result(own_tokenizer or load_tokenizer(directory))
    loading = Loading(engine, asyncio.create_task(engine.start()), tokenizer, directory)
    server = Running(
        port=listener.getsockname()[1],
        engine=engine,
        model_name=config.served_model_names[0],
        _loop=asyncio.get_running_loop(),
        _stop=asyncio.Event(),
        _thread=threading.current_thread(),
    )
    started.set_result(server)
    try:
        await serve(
            loading, listener, config, max_num_seqs=max_num_seqs, stop=server._stop, on_ready=ready.set
        )
    except EngineError as error:
        server.failure = error
