"""`berth bench`: measures the speed of Berth, or of any server with OpenAI's protocol."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from cli.completion import complete_models
from cli.errors import CliError, ExitCode, wrong_use
from cli.figures import TIMES, summary
from cli.load import Load, Progress, run_load
from cli.prompts import prompt_of, words_for
from cli.server import Server
from cli.session import Session, with_session
from cli.target import MODELS_PATH
from cli.units import NOTHING
from cli.values import key_values

_SHOWN_ERRORS = 5
_HEADS = ("mean", "p50", "p95", "p99")


class Endpoint(StrEnum):
    """The route that requests use."""

    COMPLETIONS = "completions"
    CHAT = "chat"

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self is Endpoint.CHAT else "/v1/completions"


@with_session
def bench(
    session: Session,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Default: the server's only model", autocompletion=complete_models
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option("--requests", "-n", "--num-prompts", min=1, help="Total number of requests")
    ] = 64,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", "--max-concurrency", min=1, help="Concurrent requests")
    ] = 8,
    input_tokens: Annotated[
        int, typer.Option("--input-tokens", "--random-input-len", min=1, help="Approximate tokens per prompt")
    ] = 128,
    output_tokens: Annotated[
        int, typer.Option("--output-tokens", "--random-output-len", min=1, help="Tokens per response")
    ] = 128,
    request_rate: Annotated[
        float,
        typer.Option(min=0, help="Requests started per second, at random times; 0 = as soon as possible"),
    ] = 0,
    endpoint: Annotated[Endpoint, typer.Option(help="Route for the requests")] = Endpoint.COMPLETIONS,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of each request, e.g. temperature=1"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random prompts")] = 0,
) -> None:
    """Measure the speed of a model.

    Streams responses to prompts of random words; --url may name any OpenAI-compatible server. The server
    counts the tokens. Ctrl-C ends the measurement early and shows the results so far. A model that isn't
    running is started first; its start isn't measured.
    """
    rng = random.Random(seed)  # noqa: S311  # not for security
    with session.server() as server:
        target = _ModelUnderTest(
            server, model or _only_model(server), endpoint, output_tokens, key_values(fields or [])
        )
        with session.waiting(f"{target.model}: the first requests"):
            target.warm_up()
            num_words = words_for(input_tokens, target.count, rng)
    prompts = [prompt_of(num_words, rng) for _ in range(requests)]
    load = Load(endpoint.path, target.body, prompts, concurrency, request_rate)
    progress, interrupted = _measured(session, load, target, rng)
    shape = {
        "model": target.model,
        "url": server.url,
        "endpoint": endpoint.path,
        "requests": requests,
        "concurrency": concurrency,
        "request_rate": request_rate or None,
        "interrupted": interrupted,
    }
    _print(session, shape | summary(progress.outcomes, progress.duration_s))
    if interrupted:
        raise KeyboardInterrupt
    if all(one.error for one in progress.outcomes):
        if session.as_json:
            raise typer.Exit(ExitCode.REFUSED)
        raise CliError(f"no request succeeded: {progress.outcomes[0].error}", ExitCode.REFUSED)


def register(app: typer.Typer) -> None:
    app.command()(bench)


class _ModelUnderTest:
    """One model of a server, and the requests to it."""

    def __init__(
        self, server: Server, model: str, endpoint: Endpoint, output_tokens: int, fields: dict[str, Any]
    ) -> None:
        self.server = server
        self.model = model
        self._endpoint = endpoint
        self._output_tokens = output_tokens
        self._fields = fields
        self._has_tokenizer = True  # until a request shows otherwise
        self._exact_length: dict[str, Any] = {"ignore_eos": True, "min_tokens": output_tokens}

    def body(self, prompt: str) -> dict[str, Any]:
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        length = {"max_tokens": self._output_tokens, "temperature": 0, **self._exact_length}
        return self._identified(prompt) | length | stream | self._fields

    def warm_up(self) -> None:
        """Start the model. For a server that refuses fields for the exact length, leave them out."""
        try:
            self._ask("Hello", self._exact_length | {"min_tokens": 1})
        except CliError as exc:
            if exc.exit_code is not ExitCode.REFUSED:
                raise
            self._exact_length = {}
            self._ask("Hello", {})

    def count(self, prompt: str) -> int | None:
        """The prompt's tokens by the server's tokenizer, or else by a response's usage; None if unknown."""
        if self._has_tokenizer:
            try:
                answer = self.server.request("POST", "/tokenize", body=self._identified(prompt))
                return int(answer["count"])
            except (CliError, LookupError, TypeError, ValueError):
                self._has_tokenizer = False
        answer = self._ask(prompt, {})
        tokens = (answer.get("usage") or {}).get("prompt_tokens") if isinstance(answer, dict) else None
        return tokens if isinstance(tokens, int) else None

    def _identified(self, prompt: str) -> dict[str, Any]:
        if self._endpoint is Endpoint.CHAT:
            return {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        return {"model": self.model, "prompt": prompt}

    def _ask(self, prompt: str, more: dict[str, Any]) -> Any:
        body = self._identified(prompt) | {"max_tokens": 1} | more
        return self.server.request("POST", self._endpoint.path, body=body, timeout_s=None)


def _only_model(server: Server) -> str:
    """Raises CliError if there isn't exactly one."""
    names = [str(one["id"]) for one in server.get(MODELS_PATH)["data"]]
    if len(names) != 1:
        raise wrong_use(f"{server.url} has {len(names)} models: {', '.join(names)}", "name one of them")
    return names[0]


def _measured(
    session: Session, load: Load, target: _ModelUnderTest, rng: random.Random
) -> tuple[Progress, bool]:
    """The results of the load, and whether Ctrl-C ended it."""
    progress = Progress()
    server = target.server
    with session.waiting(f"0 of {len(load.prompts)} requests") as show:

        def on_end(so_far: Progress) -> None:
            failed = sum(one.error is not None for one in so_far.outcomes)
            note = f", {failed} failed" if failed else ""
            show(f"{len(so_far.outcomes)} of {len(load.prompts)} requests{note} …")

        try:
            asyncio.run(run_load(load, server.async_client, progress, on_end, rng))
        except KeyboardInterrupt:
            return progress, True
    return progress, False


def _print(session: Session, result: dict[str, Any]) -> None:
    if session.as_json:
        session.print_json(result)
        return
    answered = f"{result['completed']} answered, {result['failed']} failed, of {result['requests']}"
    lines = {
        "model": f"{result['model']} at {result['url']}{result['endpoint']}",
        "requests": f"{answered}; {result['concurrency']} concurrent",
        "duration": f"{result['duration_s']:.2f} s",
        "input tokens": _count(result["input_tokens"]),
        "output tokens": _count(result["output_tokens"]),
        "requests per s": _number(result["requests_per_s"]),
        "input tokens per s": _number(result["input_tokens_per_s"]),
        "output tokens per s": _number(result["output_tokens_per_s"]),
        "all tokens per s": _number(result["total_tokens_per_s"]),
    }
    for name, text in lines.items():
        session.say(f"{name:<24}{text}")
    session.say("\n" + _row("milliseconds", _HEADS))
    for key, name in TIMES.items():
        numbers = result[key] or {}
        session.say(_row(name, [_number(numbers.get(head)) for head in _HEADS]))
    for message, count in list(result["errors"].items())[:_SHOWN_ERRORS]:
        session.remark(f"{count} failed: {message}", style="red")


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<24}" + "".join(f"{cell:>12}" for cell in cells)


def _count(number: int | None) -> str:
    return NOTHING if number is None else str(number)


def _number(number: float | None) -> str:
    return NOTHING if number is None else f"{number:.2f}"
