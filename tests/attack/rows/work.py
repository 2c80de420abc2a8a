"""Small requests that cause much work: per step, per token, per prompt, per expression."""

from __future__ import annotations

import json
import string
import threading
import time
from collections.abc import Iterable
from typing import Any

from tests.attack.attack import Attack, attack
from tests.attack.environment import DEMO, MODEL, AttackEnvironment
from tests.attack.rows.bodies import (
    ANY,
    CHAT,
    COMPLETIONS,
    NAMED,
    PROMPT,
    Body,
    M,
    chat,
    completion,
    many,
    text,
)
from tests.faults.journal import Reply

SLOWLY = (*ANY, 429, 0)  # legitimate work may take long, and the client may disconnect first
COMPILER_BYTES = 512 << 20  # each grammar's process may use this much while it compiles
OTHERS_S = 5.0  # within which another client's small request of the same kind is served

HEAVY = (
    Body("5 million allowed tokens × n 128", COMPLETIONS,
         lambda: completion(b'"n": 128, "allowed_token_ids": ' + many("7", 5 * M))),
    Body("as many allowed tokens as are taken × n 128", COMPLETIONS,
         lambda: completion(b'"n": 128, "allowed_token_ids": '
                            + json.dumps(list(range(2048))).encode()), ANY),
    Body("4,096 bad words of 7 KB × n 128", COMPLETIONS,
         lambda: completion(b'"n": 128, "bad_words": ' + many(json.dumps("a b " * 1750), 4096))),
    Body("4,096 short bad words × n 128", COMPLETIONS,
         lambda: completion(b'"n": 128, "bad_words": '
                            + json.dumps([f"a b {one}" for one in range(4096)]).encode()), ANY),
    Body("biases × n 128", COMPLETIONS,
         lambda: completion(b'"n": 128, "logit_bias": '
                            + json.dumps({str(one): 1 for one in range(1000)}).encode()), ANY),
    Body("prompt_logprobs of 100 prompts", COMPLETIONS,
         lambda: b'{"max_tokens": 1, "prompt_logprobs": 20, "prompt": ' + many(PROMPT, 100) + b"}", SLOWLY),
    Body("prompt_logprobs of 4 prompts", COMPLETIONS,
         lambda: b'{"max_tokens": 1, "prompt_logprobs": 20, "prompt": ' + many(PROMPT, 4) + b"}", SLOWLY),
    Body("echo with logprobs of 16 prompts", COMPLETIONS,
         lambda: b'{"max_tokens": 1, "echo": true, "logprobs": 5, "prompt": '
                 + many(PROMPT, 16) + b"}", SLOWLY, prompt_tokens=2 * 16 * 1900),
    Body("all logprobs × n 16", COMPLETIONS,
         lambda: b'{"max_tokens": 64, "n": 16, "logprobs": 20, "prompt": "a"}', ANY),
    Body("15 million tokens to text", "/detokenize",
         lambda: NAMED + b'"tokens": ' + many("1", 15 * M) + b"}"),
    Body("a million tokens to text", "/detokenize",
         lambda: NAMED + b'"tokens": ' + many("100", M) + b"}", ANY),
    Body("28 MB to tokens", "/tokenize", lambda: NAMED + b'"prompt": ' + text(28 * M) + b"}", ANY),
    Body("a prompt of 28 MB, cut to 5 tokens", COMPLETIONS,
         lambda: NAMED + b'"truncate_prompt_tokens": 5, "max_tokens": 1, "prompt": '
                       + text(28 * M) + b"}", ANY),
    Body("a prompt of one word of 10 MB", COMPLETIONS,
         lambda: NAMED + b'"max_tokens": 1, "prompt": "' + b"a" * 10 * M + b'"}', ANY),
    Body("64 prompts × n 64", COMPLETIONS,
         lambda: NAMED + b'"max_tokens": 4, "n": 64, "prompt": ' + many('"a"', 64) + b"}", SLOWLY),
    Body("1,024 prompts × n 128", COMPLETIONS,
         lambda: NAMED + b'"max_tokens": 4, "n": 128, "prompt": ' + many('"a"', 1024) + b"}", SLOWLY),
    Body("32 beams of 200 tokens", COMPLETIONS,
         lambda: NAMED + b'"max_tokens": 200, "n": 32, "use_beam_search": true, "temperature": 0,'
                         b'"prompt": "a"}', SLOWLY),
    Body("a chat template that loops for ever", CHAT,
         lambda: chat(b'"chat_template": "{% for a in range(99999) %}{% for b in range(99999) %}x'
                      b'{% endfor %}{% endfor %}"')),
)  # fmt: skip


def _schema(pattern: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"x": {"type": "string", "pattern": pattern}},
        "required": ["x"],
    }
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def _asked(pattern: str, tag: object = "", **more: Any) -> dict[str, Any]:
    """A chat whose response must match an expression; `tag` makes it unique."""
    messages = [{"role": "user", "content": "a"}]
    schema = _schema(f"{tag}{pattern}")
    return {"model": MODEL, "messages": messages, "max_tokens": 8, "response_format": schema, **more}


def _grammar(text: str, **more: Any) -> dict[str, Any]:
    outputs = {"structured_outputs": {"grammar": text}}
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 700,
        **outputs,
        **more,
    }


def _beside_others(env: AttackEnvironment, path: str, bodies: Iterable[dict[str, Any]]) -> None:
    """The attacker sends these at once; meanwhile another client's new schema is compiled."""
    bodies = list(bodies)
    tag = f"{time.monotonic_ns()}"  # so that no attempt reuses a compiled grammar
    waits: list[Reply] = []
    with env.measured():
        env.measurement.work_bytes = len(bodies) * COMPILER_BYTES
        threads = [
            threading.Thread(target=env.ask, args=("POST", path, body), kwargs={"timeout_s": 24.0})
            for body in bodies
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        for number in range(3):
            small = _asked("[a-c]{1,3}", f"{tag}{number}")
            waits.append(env.as_victim("POST", CHAT, small, timeout_s=8))
            time.sleep(1.0)
        for thread in threads:
            thread.join()
    longest = max(one.seconds for one in waits)
    env.measurement.notes.append(f"another client's new schema: {longest:.2f} s")
    refused = [str(one) for one in waits if one.status != 200]
    assert not refused, f"another client's new schema: {refused[0][:200]}"
    assert longest < OTHERS_S, f"another client's new schema took {longest:.1f} s"


def _two_schemas_that_compile_for_minutes(env: AttackEnvironment) -> None:
    tag = time.monotonic_ns()
    pattern = "".join(f"[^{one}]*" for one in string.ascii_lowercase) * 20
    _beside_others(env, CHAT, (_asked(pattern, f"{tag}{number}") for number in range(2)))


def _eight_of_them(env: AttackEnvironment) -> None:
    tag = time.monotonic_ns()
    pattern = "".join(f"[^{one}]*" for one in string.ascii_lowercase) * 20
    _beside_others(env, CHAT, (_asked(pattern, f"{tag}{number}") for number in range(8)))


def _two_grammars_that_never_compile(env: AttackEnvironment) -> None:
    rules = (f"r{n} ::= [a-z]* r{n + 1} [^{chr(97 + n % 26)}]* | r{n + 1} r{n + 1}" for n in range(200))
    endless = "\n".join(["root ::= r0", *rules, 'r200 ::= "x"'])
    tag = time.monotonic_ns()
    _beside_others(env, CHAT, (_grammar(f"{endless}\n# {tag}{n}") for n in range(2)))


def _a_grammar_that_is_slow_after_400_tokens(env: AttackEnvironment) -> None:
    """Each letter after the digits can be parsed in ever more ways."""
    slow = f'root ::= [0-9]{{300}} "x" e\ne ::= e e | "a" | "b" | e "a" e | e e e\n# {time.monotonic_ns()}'
    _beside_others(env, CHAT, [_grammar(slow, temperature=1, ignore_eos=True)])


def _large_schemas(env: AttackEnvironment) -> None:
    """Schemas with long lists, deep nesting and large counts."""
    tag = f"{time.monotonic_ns()}"
    listed = {"enum": [f"{tag}{n}" for n in range(50_000)]}
    wide = {"type": "object", "properties": {f"{tag}{n}": {"type": "string"} for n in range(5000)}}
    counted = {"type": "array", "items": {"type": "integer"}, "minItems": 90_000, "maxItems": 100_000}
    deep: dict[str, Any] = {"type": "integer", "title": tag}
    for _ in range(500):
        deep = {"type": "array", "items": deep}
    union = {"anyOf": [{"type": "string", "pattern": f"{tag}[a-z]{{{n},{n + 50}}}"} for n in range(1, 200)]}
    base = _asked("a")
    formats = [{"type": "json_schema", "json_schema": {"name": "x", "schema": one}}
               for one in (listed, wide, counted, deep, union)]  # fmt: skip
    _beside_others(env, CHAT, ({**base, "response_format": one} for one in formats))


SLOW = ("^(a+)+$", "^(a|a)*$", "^(a|aa)+$", "^(.*a){20}$", "^(([a-z])+.)+[A-Z]([a-z])+$", "(?=(a+))a*b")


def _expressions_that_never_end(env: AttackEnvironment) -> None:
    """In tools, in schemas and alone: clients' expressions are not run by a backtracking engine."""
    parameters = {
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "pattern": one} for n, one in enumerate(SLOW)},
        "patternProperties": {one: {"type": "integer"} for one in SLOW[:3]},
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    turn = [{"role": "user", "content": "a" * 60 + "!"}]
    chats: list[dict[str, Any]] = [{"tools": tools, "tool_choice": choice} for choice in ("auto", "required")]
    chats += [{"structured_outputs": {"regex": one}} for one in SLOW]
    with env.measured():
        replies = [
            env.ask("POST", CHAT, {"model": MODEL, "messages": turn, "max_tokens": 40, **one}, timeout_s=8)
            for one in chats
        ]
    odd = [str(one) for one in replies if one.status not in SLOWLY]
    assert not odd, odd[0]


def _thirty_requests_at_once(env: AttackEnvironment) -> None:
    """The victim's stream slows down to its share, without stalling."""
    body = {"model": MODEL, "prompt": "a", "max_tokens": 40, "ignore_eos": True}

    def ask() -> None:
        env.ask("POST", f"/proxy/{DEMO}/v1/completions", body)

    threads = [threading.Thread(target=ask) for _ in range(30)]
    with env.measured():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    got = set(env.measurement.statuses)
    assert got <= {"200", "429"}, str(got)


ATTACKS: tuple[Attack, ...] = (
    *(one.attack() for one in HEAVY),
    attack("key", _two_schemas_that_compile_for_minutes),
    attack("key", _eight_of_them),
    attack("key", _two_grammars_that_never_compile),
    attack("key", _a_grammar_that_is_slow_after_400_tokens),
    attack("key", _large_schemas),
    attack("key", _expressions_that_never_end),
    attack("key", _thirty_requests_at_once),
)
