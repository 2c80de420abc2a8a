"""From keyword arguments to a loaded model, and back to nothing."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.config import EngineConfig, ServerConfig
from engine.core.async_engine import AsyncEngine
from engine.core.engine_thread import EngineThread
from engine.errors import ConfigError, EngineDead
from engine.launch.flag_parser import build_parser
from engine.launch.flags import Flags
from engine.launch.launcher import (
    find_checkpoint,
    loop_factory,
    make_engine,
    prepare_process,
    read_keywords,
    tell,
)
from engine.offline.loop_thread import LoopThread, Report
from engine.pooling.engine import PoolingEngine
from engine.server.generation.service import GenerationService
from engine.server.model.model_service import ModelService
from engine.server.model.served_model import load_served_model
from engine.server.pooling.service import PoolingService

_REQUESTS_PER_SLOT = 4  # known to the engine, for each that can run
_STOP_S = 10.0  # for the last step of a large model
# The server's flags that mean something without HTTP.
_SERVER_FIELDS = frozenset(
    """served_model_names tokenizer chat_template chat_template_content_format trust_request_chat_template
    tool_call_parser reasoning_parser max_logprobs default_chat_template_kwargs generation_config
    override_generation_config seed enable_sleep_mode lora_modules log_stats stream_interval""".split()  # noqa: SIM905
)


class Hosted:
    """A loaded model, and the thread to which it belongs."""

    def __init__(self, loop: LoopThread, service: ModelService, max_num_seqs: int) -> None:
        self.loop = loop
        self.most_at_once = max_num_seqs * _REQUESTS_PER_SLOT  # they keep the engine busy
        self._service: ModelService | None = service

    def __repr__(self) -> str:
        service = self._service
        return "shut down" if service is None else f"{service.model.name} {service.engine!r}"

    @property
    def service(self) -> ModelService:
        """Raises EngineDead once it is closed."""
        if self._service is None:
            raise EngineDead("The engine was shut down.")
        return self._service

    def close(self) -> None:
        """End running calls, free the memory, end the threads; may be called again, from any thread."""
        service, self._service = self._service, None
        if service is not None and not self.loop.is_current:
            with suppress(EngineDead):
                self.loop.call(partial(_stop, service))
        self.loop.close()
        service = None
        gc.collect()  # the model is part of reference cycles


def read_arguments(model: str | os.PathLike[str] | None, flags: Mapping[str, Any]) -> Flags:
    """The flags of `python -m engine` from keyword arguments. Raises ConfigError that names the argument."""
    _refuse_http(flags)
    parsed = read_keywords(model, {name: _as_flag(value) for name, value in flags.items()})
    # A program waits instead of being told to retry, and trusts its own templates.
    server = replace(parsed.server, max_waiting=sys.maxsize, trust_request_chat_template=True)
    return replace(parsed, server=server)


def host(flags: Flags) -> Hosted:
    """Load the model. Raises what `python -m engine` ends with."""
    prepare_process()
    tell(flags)
    config = find_checkpoint(flags)
    loop = LoopThread(loop_factory())
    try:
        service = loop.call(lambda report: _load(config, flags.server))
        return Hosted(loop, service, config.max_num_seqs)
    except BaseException:
        loop.close()
        raise


async def _load(config: EngineConfig, server: ServerConfig) -> ModelService:
    engine, tokenizer_future = make_engine(config, server.tokenizer)

    async def read_model() -> Any:
        tokenizer = await asyncio.wrap_future(tokenizer_future)
        return await asyncio.to_thread(load_served_model, Path(config.model), server, tokenizer)

    service = _service(engine, server, config.max_num_seqs)
    try:
        _, model = await asyncio.gather(engine.start(), read_model())
        if isinstance(service, GenerationService):
            await service.load_first_adapters(model)
        service.serve(model)
    except BaseException:
        await engine.shutdown(_STOP_S if engine.is_alive else 0)  # one that still loads can't be stopped
        raise
    return service


def _service(engine: AsyncEngine | PoolingEngine, server: ServerConfig, max_num_seqs: int) -> ModelService:
    if isinstance(engine, PoolingEngine):
        return PoolingService(engine, server, max_num_seqs=max_num_seqs)
    return GenerationService(engine, server, max_num_seqs=max_num_seqs)


async def _stop(service: ModelService, report: Report[None]) -> None:
    engine: EngineThread[Any, Any, Any] = service.engine
    service.draining = True
    await engine.shutdown(_STOP_S)
    service.model.grammar_compiler.close()


def _refuse_http(flags: Mapping[str, Any]) -> None:
    """Raise ConfigError for a flag that only a server can honour."""
    names = {field.name for field in fields(ServerConfig)} - _SERVER_FIELDS
    actions = build_parser()._option_string_actions
    for name in flags:
        action = actions.get(f"--{name.replace('_', '-')}")
        if action is not None and action.dest in names:
            raise ConfigError(f"{name} is a flag of the server: LLM serves no HTTP; use run_server.")


def _as_flag(value: Any) -> Any:
    """torch's types by their names; other values as they are."""
    return str(value).removeprefix("torch.") if type(value).__module__ == "torch" else value
