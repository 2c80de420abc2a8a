"""The HTTP client of the cases. Responses are kept unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from conformance.checks import brief, check, equal, has_keys

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"

GREEDY: dict[str, Any] = {"temperature": 0}
# The widest distribution, regardless of the checkpoint's recommendations.
WIDE: dict[str, Any] = {"temperature": 2.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        try:
            return json.loads(self.text)
        except ValueError:
            check(False, f"status {self.status}, not JSON: {brief(self.text)}")

    def ok(self) -> Any:
        """The body of a 200."""
        check(self.status == 200, f"status {self.status}: {brief(self.text)}")
        return self.json


@dataclass(frozen=True, slots=True)
class Stream:
    """The events of a stream whose format has been checked."""

    headers: Mapping[str, str]
    chunks: list[Any]  # without [DONE]

    @property
    def choices(self) -> list[Any]:
        return [choice for chunk in self.chunks for choice in chunk["choices"]]

    def of(self, index: int) -> list[Any]:
        return [choice for choice in self.choices if choice["index"] == index]

    def text(self, index: int = 0) -> str:
        """The text of a completion or a chat, assembled from the chunks."""
        return "".join(
            choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            for choice in self.of(index)
        )

    def end(self, index: int = 0) -> Any:
        """The choice's chunk with the finish reason."""
        ends = [choice for choice in self.of(index) if choice.get("finish_reason") is not None]
        equal(len(ends), 1, f"chunks of choice {index} with a finish_reason")
        return ends[0]


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about the server, determined before the first case."""

    model: str
    max_model_len: int
    owner: str  # `owned_by` of the model's card
    prompt: str = ""  # a prompt that the model continues with some text
    prompt_ids: list[int] = field(default_factory=list)
    text: str = ""  # its greedy continuation, of `NUM_TOKENS` tokens, end-of-sequence ignored
    token_ids: list[int] = field(default_factory=list)


class Api:
    def __init__(self, http: httpx.AsyncClient, facts: Facts) -> None:
        self.http = http
        self.facts = facts

    async def get(self, path: str, **params: Any) -> Answer:
        return _answer(await self.http.get(path, params=params))

    async def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        if body is not None:
            options["json"] = body
        return _answer(await self.http.post(path, **options))

    async def complete(self, prompt: Any = None, **fields: Any) -> Any:
        """A completion; by default 16 tokens, greedy, ignoring end-of-sequence tokens."""
        return (await self.post(COMPLETIONS, self.completion_body(prompt, **fields))).ok()

    async def chat(self, messages: Any = None, **fields: Any) -> Any:
        return (await self.post(CHAT, self.chat_body(messages, **fields))).ok()

    async def stream_completion(self, prompt: Any = None, **fields: Any) -> Stream:
        return await self.stream(COMPLETIONS, self.completion_body(prompt, **fields))

    async def stream_chat(self, messages: Any = None, **fields: Any) -> Stream:
        return await self.stream(CHAT, self.chat_body(messages, **fields))

    async def tokens_of(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        body = {"model": self.facts.model, "prompt": text, "add_special_tokens": add_special_tokens}
        tokens: list[int] = (await self.post("/tokenize", body)).ok()["tokens"]
        return tokens

    async def text_of(self, tokens: list[int]) -> str:
        body = {"model": self.facts.model, "tokens": tokens}
        text: str = (await self.post("/detokenize", body)).ok()["prompt"]
        return text

    def completion_body(self, prompt: Any = None, **fields: Any) -> dict[str, Any]:
        prompt = self.facts.prompt if prompt is None else prompt
        return _without_omitted(
            {"model": self.facts.model, "prompt": prompt, "max_tokens": 16, "ignore_eos": True, **GREEDY},
            fields,
        )

    def chat_body(self, messages: Any = None, **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": "Hello"}] if messages is None else messages
        return _without_omitted(
            {"model": self.facts.model, "messages": messages, "max_tokens": 16, "ignore_eos": True, **GREEDY},
            fields,
        )

    async def stream(self, path: str, body: dict[str, Any]) -> Stream:
        """A complete stream, checked to be server-sent events of JSON with a single `[DONE]` at the end."""
        async with self.http.stream("POST", path, json={**body, "stream": True}) as response:
            if response.status_code != 200:
                await response.aread()
                check(False, f"status {response.status_code}: {brief(response.text)}")
            content_type = response.headers["content-type"]
            check(content_type.startswith("text/event-stream"), f"content-type of a stream: {content_type}")
            lines = [line async for line in response.aiter_lines()]
        for line in lines:
            check(not line or line.startswith(("data: ", ":")), f"not an SSE data line: {brief(line)}")
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        check(data and data[-1] == "[DONE]", f"the stream must end with [DONE], not {brief(data[-1:])}")
        equal(data.count("[DONE]"), 1, "number of [DONE]")
        chunks = [json.loads(piece) for piece in data[:-1]]
        for chunk in chunks:
            check("error" not in chunk, f"an error in the stream: {brief(chunk)}")
        return Stream(response.headers, chunks)

    async def refused(self, answer: Answer, status: int = 400) -> Any:
        """Check that the response is an error in OpenAI's envelope; the error object."""
        equal(answer.status, status, f"status (body {brief(answer.text)})")
        has_keys(answer.json, ["error"], "the body of an error")
        error = answer.json["error"]
        has_keys(error, ["message", "type", "param", "code"], "an error")
        check(isinstance(error["message"], str) and error["message"], f"an error's message: {brief(error)}")
        return error


OMIT = object()  # as a field's value: omit the field


def _without_omitted(defaults: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**defaults, **fields}.items() if value is not OMIT}


def _answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.headers, response.text)
