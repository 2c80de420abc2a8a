"""Sampling fields: the accepted ranges, and effects that hold for any model."""

from __future__ import annotations

from collections import Counter
from typing import Any

from conformance.case import Group, Need
from conformance.cases.completions import text_of
from conformance.checks import NotApplicable, check, equal
from conformance.client import WIDE, Api

group = Group("sampling", Need.GENERATE)

_VALUES: dict[str, tuple[Any, ...]] = {
    "temperature": (0.01, 0.7, 1, 1.5, 2),
    "top_p": (0.01, 0.5, 1.0),
    "top_k": (-1, 0, 1, 50, 10**6),
    "min_p": (0.0, 0.05, 1.0),
    "presence_penalty": (-2, -0.5, 2.0),
    "frequency_penalty": (-2.0, 0.5, 2),
    "repetition_penalty": (0.5, 1.1, 2.0),
    "seed": (0, 1, 2**31, 2**63 - 1),
    "min_tokens": (0, 1, 8),
}


@group.each({f"{name}-{value}": {name: value} for name, values in _VALUES.items() for value in values})
async def takes(api: Api, fields: dict[str, Any]) -> None:
    answer = await api.complete(**{"temperature": 1.0, **fields, "max_tokens": 8})
    equal(answer["usage"]["completion_tokens"], 8, "completion_tokens")


@group.each({"top-k-1": {"top_k": 1}, "tiny-top-p": {"top_p": 1e-6}, "min-p-1": {"min_p": 1.0}})
async def one_candidate_is_greedy(api: Api, fields: dict[str, Any]) -> None:
    """Each token is a most likely one; in bfloat16 several can be equally likely, and any of them will do."""
    answer = await api.complete(**{**WIDE, "temperature": 1.0, **fields, "logprobs": 1})
    logprobs = answer["choices"][0]["logprobs"]
    for sampled, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        equal(sampled, max(top.values()), "the sampled token's log-probability")


@group.each({"0.5": 0.5, "1": 1.0, "2": 2.0})
async def a_seed_repeats(api: Api, temperature: float) -> None:
    fields = {**WIDE, "temperature": temperature, "seed": 42}
    equal(text_of(await api.complete(**fields)), text_of(await api.complete(**fields)), "text")


@group.case()
async def a_seed_repeats_beside_others(api: Api) -> None:
    fields = {**WIDE, "temperature": 1.0, "seed": 42}
    alone = text_of(await api.complete(**fields))
    both = await api.complete([api.facts.prompt, f"{api.facts.prompt} and"], **fields)
    equal(text_of(both), alone, "text")


@group.case()
async def seeds_differ(api: Api) -> None:
    texts = {text_of(await api.complete(**WIDE, seed=seed, max_tokens=32)) for seed in range(3)}
    equal(len(texts), 3, "number of different texts of three seeds")


@group.case()
async def without_a_seed_answers_differ(api: Api) -> None:
    texts = {text_of(await api.complete(**WIDE, max_tokens=32)) for _ in range(3)}
    equal(len(texts), 3, "number of different texts of three requests")


@group.case()
async def n_choices_of_one_seed_differ(api: Api) -> None:
    answer = await api.complete(**WIDE, seed=1, n=3, max_tokens=32)
    equal(len({choice["text"] for choice in answer["choices"]}), 3, "number of different texts")


@group.case()
async def n_choices_of_one_seed_repeat(api: Api) -> None:
    first = await api.complete(**WIDE, seed=1, n=3)
    second = await api.complete(**WIDE, seed=1, n=3)
    equal([c["text"] for c in first["choices"]], [c["text"] for c in second["choices"]], "texts")


# Ids


async def _ids(api: Api, **fields: Any) -> list[int]:
    """The sampled token ids."""
    answer = await api.complete(return_token_ids=True, **fields)
    ids: list[int] = answer["choices"][0]["token_ids"]
    return ids


@group.case()
async def a_bias_of_100_forces_a_token(api: Api) -> None:
    token = (await api.tokens_of("A"))[0]
    equal(await _ids(api, logit_bias={str(token): 100}, max_tokens=4), [token] * 4, "token ids")


@group.case()
async def a_bias_of_minus_100_forbids_a_token(api: Api) -> None:
    token = (await _ids(api, max_tokens=1))[0]
    check(
        token not in await _ids(api, logit_bias={str(token): -100}),
        f"token {token} was generated nevertheless",
    )


@group.case()
async def a_bias_works_when_sampling(api: Api) -> None:
    token = (await api.tokens_of("A"))[0]
    ids = await _ids(api, logit_bias={str(token): 100}, max_tokens=4, temperature=0.5, seed=1)
    equal(ids, [token] * 4, "token ids")


@group.each({"greedy": {}, "wide": {**WIDE, "seed": 1}})
async def only_allowed_tokens_are_generated(api: Api, fields: dict[str, Any]) -> None:
    allowed = sorted(set(await api.tokens_of("A B C 1 2 3")))
    ids = await _ids(api, allowed_token_ids=allowed, **fields)
    check(set(ids) <= set(allowed), f"token ids {ids}, allowed {allowed}")


@group.case()
async def one_allowed_token_is_the_answer(api: Api) -> None:
    token = (await api.tokens_of("A"))[0]
    equal(await _ids(api, allowed_token_ids=[token], max_tokens=5), [token] * 5, "token ids")


@group.each({"frequency": {"frequency_penalty": 2.0}, "repetition": {"repetition_penalty": 2.0}})
async def a_penalty_increases_variety(api: Api, fields: dict[str, Any]) -> None:
    allowed = sorted(set(await api.tokens_of("A B C 1 2 3")))
    without = Counter(await _ids(api, allowed_token_ids=allowed, max_tokens=32))
    with_it = Counter(await _ids(api, allowed_token_ids=allowed, max_tokens=32, **fields))
    check(len(with_it) >= len(without), f"kinds of tokens without {len(without)}, with {len(with_it)}")
    if fields.get("frequency_penalty"):
        check(len(with_it) > 1, "a frequency penalty of 2 leaves only one token")


@group.case()
async def a_negative_frequency_penalty_makes_one_token_stay(api: Api) -> None:
    allowed = sorted(set(await api.tokens_of("A B C 1 2 3")))
    ids = await _ids(api, allowed_token_ids=allowed, max_tokens=32, frequency_penalty=-2.0)
    check(len(set(ids[-8:])) == 1, f"the last of the token ids {ids}")


@group.case()
async def bad_words_are_not_generated(api: Api) -> None:
    words = [word for word in api.facts.text.split() if word.isalpha()]
    if not words:
        raise NotApplicable("the model generates no words")
    text = text_of(await api.complete(bad_words=[words[0]], max_tokens=32))
    check(words[0] not in text.split(), f"{words[0]!r} occurs in {text!r}")


@group.case()
async def ignore_eos_continues(api: Api) -> None:
    answer = await api.complete(max_tokens=100)
    equal(answer["usage"]["completion_tokens"], 100, "completion_tokens")


@group.case()
async def concurrent_prompts_give_the_same_text(api: Api) -> None:
    prompts = [f"{api.facts.prompt} {word}" for word in ("red", "green", "blue", "old", "new", "far")]
    together = await api.complete(prompts)
    for prompt, choice in zip(prompts, together["choices"], strict=True):
        equal(choice["text"], text_of(await api.complete(prompt)), f"text after {prompt!r}")
