"""The server's app without sockets, with a runner whose output is scripted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from engine.config import EngineConfig, ServerConfig
from engine.core.async_engine import AsyncEngine
from engine.core.batch import Batch, StepResult
from engine.core.engine_core import EngineCore
from engine.server.app.generation_app import create_app
from engine.server.generation.service import GenerationService
from engine.server.model.served_model import load_served_model
from engine.text.tokenizer import Tokenizer, load_tokenizer
from tests.engine.fake_runner import FakeRunner, logprobs_of
from tests.engine.server.serving import EOS

WAIT_S = 60
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class ScriptedRunner(FakeRunner):
    """Generates `script` for every prompt and then ends the sequence; otherwise like the fake runner."""

    def __init__(self) -> None:
        super().__init__(num_blocks=4096)
        self.script: Sequence[int] = ()

    def execute(self, batch: Batch) -> StepResult:
        result = super().execute(batch)
        tokens = [
            tuple(self._say(sequence.output_position + offset) for offset in range(len(replaced)))
            for replaced, sequence in zip(result.tokens, batch.sequences, strict=True)
        ]
        logprobs = {index: [logprobs_of(token) for token in tokens[index]] for index in result.logprobs}
        return StepResult(tokens, logprobs, result.prompt_logprobs, result.failures)

    def _say(self, position: int) -> int:
        return self.script[position] if position < len(self.script) else EOS


@dataclass
class App:
    asgi: Any
    http: httpx.AsyncClient
    service: GenerationService
    runner: ScriptedRunner
    tokenizer: Tokenizer

    def will_say(self, text: str) -> None:
        self.runner.script = self.tokenizer.encode(text, add_special_tokens=False)

    async def post(self, path: str, **body: Any) -> tuple[int, Any]:
        response = await self.http.post(path, json=body)
        return response.status_code, response.json()

    async def ask(self, path: str, **body: Any) -> Any:
        status, answer = await self.post(path, **body)
        assert status == 200, answer
        return answer

    async def stream(self, path: str, **body: Any) -> list[Any]:
        """The events' objects; the last event must be [DONE]."""
        response = await self.http.post(path, json={**body, "stream": True})
        assert response.status_code == 200, response.text
        data = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert data.pop() == "[DONE]"
        return [json.loads(one) for one in data]


@asynccontextmanager
async def app_in_process(directory: Path, *, max_model_len: int = 2000, **options: Any) -> AsyncIterator[App]:
    runner = ScriptedRunner()
    engine_config = EngineConfig(model=directory, max_num_seqs=8, max_num_batched_tokens=512)
    engine = AsyncEngine(
        lambda: EngineCore.from_config(
            engine_config, runner, max_model_len=max_model_len, eos_token_ids=[EOS]
        )
    )
    config = ServerConfig(**{"port": 0, "served_model_names": ("fake",), **options})
    tokenizer = load_tokenizer(directory)
    await engine.start()
    service = GenerationService(engine, config, max_num_seqs=8)
    service.serve(load_served_model(directory, config, tokenizer))
    asgi = create_app(service)
    transport = httpx.ASGITransport(app=asgi)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=WAIT_S) as http:
            yield App(asgi, http, service, runner, tokenizer)
    finally:
        assert await asyncio.wait_for(engine.shutdown(WAIT_S), WAIT_S)
