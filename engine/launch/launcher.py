"""Runs one model behind an OpenAI-compatible server, from its command line to its exit.

`python -m engine` calls `main`, Python programs `engine.run_server`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from engine.checkpoint.model_path import resolve_model
from engine.config import EngineConfig
from engine.core.async_engine import AsyncEngine
from engine.core.engine_core import EngineCore
from engine.errors import CheckpointError, ConfigError, EngineError, ModelNotFound
from engine.execution.allocator import keep_few_kernels, keep_freed_memory, use_huge_pages
from engine.launch.flags import Flags, parse_flags, to_argv
from engine.launch.preflight import check_adapters, check_checkpoint, check_config
from engine.models.quantised.gguf_directory import as_directory
from engine.pooling.engine import Core, PoolingEngine
from engine.pooling.plan import PoolingPlan, RunnerKind, choose_runner, read_pooling_plan
from engine.server.http.listener import AddressInUse, listen

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer

log = logging.getLogger("engine")

_GEN0_THRESHOLD = 10_000  # new objects per young collection; a step of many sequences makes thousands

_EXIT_FAILED = 1
_EXIT_BAD_ARGUMENTS = 2
_EXIT_UNSUPPORTED = 65  # EX_DATAERR: a checkpoint that fails on every retry
_EXIT_PORT_IN_USE = 98  # EADDRINUSE on Linux


def main() -> NoReturn:
    """Never waits for the engine's thread, which may be in a load or a step that won't end soon."""
    prepare_process()
    code = _run(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def prepare_process() -> None:
    """Call it before torch is imported."""
    keep_freed_memory()
    use_huge_pages()
    keep_few_kernels()


def run_server(model: str | os.PathLike[str] | None = None, **flags: Any) -> None:
    """Serve `model` until SIGTERM or SIGINT: `python -m engine`'s flags by name, with underscores.

    True becomes a bare flag, False its `--no-` form, None is left out, a list gives several values, a dict
    JSON. Raises EngineError if the model can't be served, AddressInUse if the port is taken.
    """
    prepare_process()
    if not logging.getLogger().handlers:
        _configure_logging("info")
    _start(read_keywords(model, flags))


def read_keywords(model: str | os.PathLike[str] | None, flags: Mapping[str, Any]) -> Flags:
    """A program's keyword arguments as flags. Raises ConfigError that names the argument."""
    given = {"model": None if model is None else os.fspath(model), **flags}
    return parse_flags(to_argv(given), os.environ)


def _run(argv: list[str]) -> int:
    _configure_logging("info")
    try:
        flags = parse_flags(argv, os.environ)
        _configure_logging(flags.server.log_level)
        _start(flags)
    except EngineError as error:
        # The error's class comes first, in words that a supervisor of this process can search for.
        log.error("%s: %s", error.code.replace("_", " "), error)
        return _exit_code(error)
    return 0


def _exit_code(error: EngineError) -> int:
    if isinstance(error, AddressInUse):
        return _EXIT_PORT_IN_USE
    if isinstance(error, CheckpointError) and not isinstance(error, ModelNotFound):
        return _EXIT_UNSUPPORTED
    return _EXIT_BAD_ARGUMENTS if isinstance(error, ConfigError) else _EXIT_FAILED


def _start(flags: Flags) -> None:
    tell(flags)
    listener = listen(flags.server.host, flags.server.port)
    with listener:
        log.info("Listening on %s, port %s.", flags.server.host, listener.getsockname()[1])
        _serve(flags, listener)


def tell(flags: Flags) -> None:
    """Log what the flags mean, as far as their names don't say it."""
    for note in flags.notes:
        log.info("%s.", note)
    for warning in flags.warnings:
        log.warning("%s", warning)


def find_checkpoint(flags: Flags) -> EngineConfig:
    """The configuration with the model's directory, checked without torch.

    Raises ModelNotFound, CheckpointError, UnsupportedModel and ConfigError.
    """

    def check(directory: Path) -> None:
        check_config(replace(flags.engine, model=directory))

    found = resolve_model(flags.engine.model, check=check)
    has_tokenizer = flags.server.tokenizer is not None
    model = as_directory(found, load_format=flags.engine.load_format, has_tokenizer=has_tokenizer)
    config = replace(flags.engine, model=model)
    check_checkpoint(config, flags.server.tokenizer)
    check_adapters(config, flags.server)
    return config


def _serve(flags: Flags, listener: socket.socket) -> None:
    config = find_checkpoint(flags)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve_on_loop(config, flags, listener))


def _on_ready() -> None:
    """Freeze all current objects: a full collection of them once stalled for 0.3 s on a busy machine.

    Requests leave little garbage behind, so the rest is collected less often too.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GEN0_THRESHOLD, 20, 50)
    log.info("The model is ready.")


async def _serve_on_loop(config: EngineConfig, flags: Flags, listener: socket.socket) -> None:
    engine, tokenizer = make_engine(config, flags.server.tokenizer)
    started = asyncio.create_task(engine.start())
    await asyncio.sleep(0)  # its thread now imports torch, while we import the server
    from engine.server.app.serve import Loading, serve

    await serve(
        Loading(engine, started, tokenizer, config.model),
        listener,
        flags.server,
        max_num_seqs=config.max_num_seqs,
        stop=_stop_on_signals(),
        on_ready=_on_ready,
    )


def make_engine(
    config: EngineConfig, tokenizer_directory: Path | None
) -> tuple[AsyncEngine | PoolingEngine, Future[Tokenizer]]:
    """The engine for the flags and the checkpoint, to be started, and its tokenizer, which now loads.

    Raises CheckpointError and ConfigError.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
    tokenizer = executor.submit(_load_tokenizer, config, tokenizer_directory or config.model)
    executor.shutdown(wait=False)
    if choose_runner(config) is RunnerKind.POOLING:
        plan = read_pooling_plan(config)
        return PoolingEngine(lambda: _build_pooling_core(config, plan, tokenizer), plan), tokenizer
    return AsyncEngine(lambda: _build_core(config, tokenizer)), tokenizer


def _load_tokenizer(config: EngineConfig, directory: Path) -> Tokenizer:
    from engine.text.tokenizer import load_tokenizer

    return load_tokenizer(directory, model=Path(config.model), overrides=config.hf_overrides)


def _build_core(config: EngineConfig, tokenizer: Future[Tokenizer]) -> EngineCore:
    from engine.execution.build import build_core

    return build_core(config, eos_token_ids=tokenizer.result().end_token_ids)


def _build_pooling_core(config: EngineConfig, plan: PoolingPlan, tokenizer: Future[Tokenizer]) -> Core:
    from engine.pooling.build import build_pooling_core

    return build_pooling_core(config, plan, tokenizer.result)


def _stop_on_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one of the same ends the process at once."""
    stop = asyncio.Event()
    if threading.current_thread() is not threading.main_thread():
        return stop  # the embedding program handles signals itself
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        log.info("Stopping on %s.", number.name)
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's if it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class _Formatter(logging.Formatter):
    """Our own errors, written for people, take one line; only unforeseen ones have a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, EngineError):
            return super().format(record)
        plain = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None})
        return f"{super().format(plain)} {error}"


def _configure_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # "trace" is uvicorn's level below debug.
    logging.basicConfig(level="DEBUG" if level == "trace" else level.upper(), handlers=[handler], force=True)
