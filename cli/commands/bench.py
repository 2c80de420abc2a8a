"""`berth bench`: how fast a server answers, Berth's or any other that speaks OpenAI's protocol."""

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
from cli.load import Load, Progress, put_on
from cli.prompts import prompt_of, words_for
from cli.server import Server
from cli.session import Session, with_session
from cli.target import MODELS_PATH
from cli.units import NOTHING
from cli.values import key_values

_SHOWN_ERRORS = 5
_HEADS = ("mean", "p50", "p95", "p99")


class Endpoint(StrEnum):
    """Where requests go."""

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
            metavar="MODEL", help="By default the server's only one", autocompletion=complete_models
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option("--requests", "-n", "--num-prompts", min=1, help="Requests in all")
    ] = 64,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", "--max-concurrency", min=1, help="Requests at a time")
    ] = 8,
    input_tokens: Annotated[
        int, typer.Option("--input-tokens", "--random-input-len", min=1, help="Tokens of a prompt, about")
    ] = 128,
    output_tokens: Annotated[
        int, typer.Option("--output-tokens", "--random-output-len", min=1, help="Tokens of an answer")
    ] = 128,
    request_rate: Annotated[
        float, typer.Option(min=0, help="Requests begun per second, at random times; 0: as soon as one may")
    ] = 0,
    endpoint: Annotated[Endpoint, typer.Option(help="Where requests go")] = Endpoint.COMPLETIONS,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of each request, as in temperature=1"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Prompts are made from it")] = 0,
) -> None:
    """Measure how fast a model answers.

    Streams prompts of random words; --url may name any OpenAI-compatible server. Tokens are counted by the
    server. Ctrl-C ends it early and shows what there is. A model that doesn't run is started first, which
    isn't measured.
    """
    rng = random.Random(seed)  # noqa: S311  # nobody is to be surprised
    with session.server() as server:
        asked = _Asked(
            server, model or _only_model(server), endpoint, output_tokens, key_values(fields or [])
        )
        with session.waiting(f"{asked.model}: the first requests"):
            asked.warm_up()
            num_words = words_for(input_tokens, asked.count, rng)
    prompts = [prompt_of(num_words, rng) for _ in range(requests)]
    load = Load(endpoint.path, asked.body, prompts, concurrency, request_rate)
    progress, interrupted = _measured(session, load, asked, rng)
    shape = {
        "model": asked.model,
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
        raise CliError(f"no request was answered: {progress.outcomes[0].error}", ExitCode.REFUSED)


def register(app: typer.Typer) -> None:
    app.command()(bench)


class _Asked:
    """One model of a server, and how it is asked."""

    def __init__(
        self, server: Server, model: str, endpoint: Endpoint, output_tokens: int, fields: dict[str, Any]
    ) -> None:
        self.server = server
        self.model = model
        self._endpoint = endpoint
        self._output_tokens = output_tokens
        self._fields = fields
        self._has_tokenizer = True  # until it is found out
        self._exactly: dict[str, Any] = {"ignore_eos": True, "min_tokens": output_tokens}

    def body(self, prompt: str) -> dict[str, Any]:
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        length = {"max_tokens": self._output_tokens, "temperature": 0, **self._exactly}
        return self._identified(prompt) | length | stream | self._fields

    def warm_up(self) -> None:
        """Have the model started. A server that can't be told to go on to the last token isn't told."""
        try:
            self._ask("Hello", self._exactly | {"min_tokens": 1})
        except CliError as exc:
            if exc.exit_code is not ExitCode.REFUSED:
                raise
            self._exactly = {}
            self._ask("Hello", {})

    def count(self, prompt: str) -> int | None:
        """The prompt's tokens by the server's tokenizer, or else by an answer; None: it tells none."""
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
    """Raises CliError where there isn't exactly one."""
    names = [str(one["id"]) for one in server.get(MODELS_PATH)["data"]]
    if len(names) != 1:
        raise wrong_use(f"{server.url} has {len(names)} models: {', '.join(names)}", "name one of them")
    return names[0]


def _measured(session: Session, load: Load, asked: _Asked, rng: random.Random) -> tuple[Progress, bool]:
    """What came of the load, and whether Ctrl-C ended it."""
    progress = Progress()
    server = asked.server
    with session.waiting(f"0 of {len(load.prompts)} requests") as show:

        def on_end(so_far: Progress) -> None:
            failed = sum(one.error is not None for one in so_far.outcomes)
            note = f", {failed} failed" if failed else ""
            show(f"{len(so_far.outcomes)} of {len(load.prompts)} requests{note} …")

        try:
            asyncio.run(put_on(load, server.async_client, progress, on_end, rng))
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
        "requests": f"{answered}; {result['concurrency']} at a time",
        "duration": f"{result['duration_s']:.2f} s",
        "input tokens": _count(result["input_tokens"]),
        "output tokens": _count(result["output_tokens"]),
        "requests per s": _figure(result["requests_per_s"]),
        "input tokens per s": _figure(result["input_tokens_per_s"]),
        "output tokens per s": _figure(result["output_tokens_per_s"]),
        "all tokens per s": _figure(result["total_tokens_per_s"]),
    }
    for name, text in lines.items():
        session.say(f"{name:<24}{text}")
    session.say("\n" + _row("milliseconds", _HEADS))
    for key, name in TIMES.items():
        figures = result[key] or {}
        session.say(_row(name, [_figure(figures.get(head)) for head in _HEADS]))
    for message, count in list(result["errors"].items())[:_SHOWN_ERRORS]:
        session.remark(f"{count} failed: {message}", style="red")


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<24}" + "".join(f"{cell:>12}" for cell in cells)


def _count(number: int | None) -> str:
    return NOTHING if number is None else str(number)


def _figure(number: float | None) -> str:
    return NOTHING if number is None else f"{number:.2f}"
