"""Bodies that are cheap to send and expensive to parse, by the model's name and by the instance."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.attack.attack import Attack
from tests.attack.environment import AttackEnvironment
from tests.attack.raw_client import JSON
from tests.attack.rows.tenants import BOTH_WAYS, by

CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
)  # fmt: skip
FORM = {"content-type": "multipart/form-data; boundary=b"}
NO = (400, 404, 413, 422, 501)  # 501: a route that this engine lacks, for any body
ANY = (200, *NO)  # for bodies at a cap, or merely large ones


@dataclass(frozen=True, slots=True)
class Body:
    """`make` is called before the measurement. `statuses`: the allowed ones."""

    name: str
    path: str
    make: Callable[[], bytes]
    statuses: Sequence[int] = NO
    headers: tuple[tuple[str, str], ...] = tuple(JSON.items())
    ways: Sequence[str] = BOTH_WAYS
    prompt_tokens: int = 0  # for which new pages of the reserved KV cache are touched

    def attack(self) -> Attack:
        return Attack(self.name, "key", self.act)

    def act(self, env: AttackEnvironment) -> None:
        body = self.make()
        headers = {name.replace("-", "_"): value for name, value in self.headers}
        with env.measured(len(body)):
            env.measurement.work_bytes = self.prompt_tokens * KV_BYTES_OF_A_TOKEN
            replies = [
                env.ask("POST", by(way, self.path), body, timeout_s=14, **headers) for way in self.ways
            ]
        for reply in replies:
            assert reply.status in self.statuses, f"not in {self.statuses}: {reply}"
            assert reply.status == 200 or len(reply.body) < 4000, f"a long error: {len(reply.body)} bytes"


def many(item: str, number: int) -> bytes:
    return f"[{','.join([item] * number)}]".encode()


def completion(fields: bytes) -> bytes:
    return b'{"model": "berth-demo", "prompt": "a", "max_tokens": 2, ' + fields + b"}"


def chat(fields: bytes) -> bytes:
    return (
        b'{"model": "berth-demo", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2, '
        + fields
        + b"}"
    )


def form(*parts: bytes) -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


def fields(number: int) -> bytes:
    return b"{" + b",".join(b'"k%d":1' % one for one in range(number)) + b"}"


M = 1_000_000
TURN = '{"role":"user","content":"a b"}'
TEXT_PART = '{"type":"text","text":"a"}'
TOOL = '{"type":"function","function":{"name":"f"}}'
FIELD = b'content-disposition: form-data; name="f"\r\n\r\nx'
PROMPT = json.dumps([7] * 1900)
KV_BYTES_OF_A_TOKEN = 2 * 7 * 2 * 32 * 4  # of the demo model in float32: layers, heads, their size
BY_NAME = ("by name",)
NAMED = b'{"model": "berth-demo", '


def text(size: int) -> bytes:
    return b'"' + b"a b c d " * (size // 8) + b'"'


FORMS = (
    Body("a form of 20,000 lines name=model", "/v1/audio/transcriptions",
         lambda: b"--b\r\n" + b"name=model\r\n" * 20_000, headers=tuple(FORM.items())),
    Body("a form of 50,000 parts", "/v1/audio/transcriptions",
         lambda: form(*[FIELD] * 50_000), headers=tuple(FORM.items())),
    Body("a form with a model of 30 MB", "/v1/audio/transcriptions",
         lambda: form(b'content-disposition: form-data; name="model"\r\n\r\n' + b"x" * 30 * M),
         headers=tuple(FORM.items())),
    Body("a form with a head of 10 MB", "/v1/audio/transcriptions",
         lambda: form(b"x: " + b"y" * 10 * M + b"\r\n\r\nz"), headers=tuple(FORM.items())),
    Body("a form whose boundary begins a million times", "/v1/audio/transcriptions",
         lambda: b"--b\r\n" + b"\r\n--" * M, headers=tuple(FORM.items())),
)  # fmt: skip
NAMES = (
    Body("an unknown model of 30 MB", COMPLETIONS, lambda: b'{"model":"' + b"x" * 30 * M + b'"}'),
    Body("an unknown model of 1000 bytes", COMPLETIONS, lambda: b'{"model":"' + b"x" * 1000 + b'"}'),
    Body("a model that is a list", COMPLETIONS, lambda: b'{"model":' + many("[]", 90_000) + b"}"),
    Body("a model named twice", COMPLETIONS, lambda: b'{"model":"' + b"x" * 9 * M + b'","model":"y"}'),
    Body("a key of 30 MB", COMPLETIONS, lambda: b'{"' + b"k" * 30 * M + b'":{"model":"y"}}'),
    Body("a model after 60 MB", COMPLETIONS,
         lambda: b'{"a":"' + b"x" * 60 * M + b'","model":"cold2"}', ways=BY_NAME),
)  # fmt: skip
SHAPES = (
    Body("99 MB of lists", COMPLETIONS, lambda: b"[" + b"[]," * 33 * M + b"[]]"),
    Body("60 MB of lists", COMPLETIONS, lambda: b"[" + b"[]," * 20 * M + b"[]]"),
    Body("30 MB of lists", COMPLETIONS, lambda: NAMED + b'"prompt":' + many("[]", 10 * M) + b"}"),
    Body("30 MB of objects", CHAT, lambda: NAMED + b'"messages":' + many("{}", 10 * M) + b"}"),
    Body("5 million numbers", COMPLETIONS, lambda: NAMED + b'"prompt":' + many("1", 5 * M) + b"}"),
    Body("nesting of 99,000", COMPLETIONS,
         lambda: NAMED + b'"prompt":' + b"[" * 99_000 + b"]" * 99_000 + b"}"),
    Body("nested objects", CHAT, lambda: b'{"a":' * 90_000 + b"1" + b"}" * 90_000),
    Body("a number of 30 MB", COMPLETIONS, lambda: completion(b'"seed": ' + b"9" * 30 * M)),
    Body("a million fields", COMPLETIONS, lambda: fields(M)),
    Body("a million escapes", COMPLETIONS, lambda: completion(b'"user": "' + b"\\u0061" * 4 * M + b'"'), ANY),
    Body("half a body", COMPLETIONS, lambda: b'{"prompt": "' + b"a" * 30 * M),
)  # fmt: skip
LISTS = (
    Body("a million messages", CHAT, lambda: NAMED + b'"messages": ' + many(TURN, M) + b"}"),
    Body("10,000 messages", CHAT, lambda: NAMED + b'"messages": ' + many(TURN, 10_000) + b"}", ANY),
    Body("a million items", RESPONSES, lambda: NAMED + b'"input": ' + many(TURN, M) + b"}"),
    Body("10,000 items", RESPONSES, lambda: NAMED + b'"input": ' + many(TURN, 10_000) + b"}", ANY),
    Body("a million of Anthropic's messages", MESSAGES,
         lambda: NAMED + b'"max_tokens": 2, "messages": ' + many(TURN, M) + b"}"),
    Body("a million text parts", CHAT,
         lambda: NAMED + b'"messages": [{"role": "user", "content": ' + many(TEXT_PART, M) + b"}]}"),
    Body("a million tools", CHAT, lambda: chat(b'"tools": ' + many(TOOL, M // 2))),
    Body("15 million token ids", COMPLETIONS, lambda: NAMED + b'"prompt": ' + many("1", 15 * M) + b"}"),
    Body("a million prompts", COMPLETIONS, lambda: NAMED + b'"prompt": ' + many('"a"', M) + b"}"),
    Body("a million lists of ids", COMPLETIONS, lambda: NAMED + b'"prompt": ' + many("[1]", M) + b"}"),
    Body("a million biases", COMPLETIONS, lambda: completion(b'"logit_bias": ' + fields(M))),
    Body("a million stop tokens", COMPLETIONS, lambda: completion(b'"stop_token_ids": ' + many("7", M))),
    Body("stop strings of 28 MB", COMPLETIONS,
         lambda: completion(b'"stop": ' + many(json.dumps("a" * 7 * M), 4)), ANY),
    Body("a million template variables", CHAT, lambda: chat(b'"chat_template_kwargs": ' + fields(M)), ANY),
    Body("a million documents", CHAT, lambda: chat(b'"documents": ' + many('{"a":1}', M)), ANY),
    Body("metadata of a million", RESPONSES,
         lambda: NAMED + b'"input": "a", "metadata": ' + fields(M) + b"}"),
    Body("a tool described in 28 MB", CHAT,
         lambda: chat(b'"tools": [{"type": "function", "function": {"name": "f", "description": '
                      + text(28 * M) + b"}}]"), ANY),
    Body("a conversation batch of 100,000", "/v1/chat/completions/batch",
         lambda: NAMED + b'"messages": ' + many(f"[{TURN}]", 100_000) + b"}"),
    Body("an image of 28 MB", CHAT,
         lambda: NAMED + b'"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": '
         b'{"url": "data:image/png;base64,' + b"A" * 28 * M + b'"}}]}]}', ANY),
)  # fmt: skip
ATTACKS = tuple(one.attack() for one in (*FORMS, *NAMES, *SHAPES, *LISTS))
