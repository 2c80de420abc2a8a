"""Determines the server's abilities and facts, once before the cases."""

from __future__ import annotations

from typing import Any

import httpx

from conformance.case import Need
from conformance.client import CHAT, COMPLETIONS, Api, Facts

NUM_TOKENS = 32
_PROMPTS = (
    "Once upon a time there was",
    "Hello! How are you today? I am",
    "1 2 3 4 5 6 7 8",
    "def main():\n    print(",
)
_TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}


class Unusable(Exception):
    """The server can't be tested at all."""


async def probe(http: httpx.AsyncClient, model: str | None) -> tuple[Api, frozenset[Need]]:
    """Facts and abilities of the server. Raises Unusable if it lacks the model, or has none."""
    response = await http.get("/v1/models")
    if response.status_code != 200:
        raise Unusable(f"GET /v1/models returned {response.status_code}: {response.text[:200]}")
    cards = {card["id"]: card for card in response.json()["data"]}
    if not cards or (model is not None and model not in cards):
        raise Unusable(f"The server has the models {sorted(cards)}, not {model!r}.")
    card = cards[model] if model is not None else next(iter(cards.values()))
    facts = Facts(card["id"], card.get("max_model_len") or 2048, card.get("owned_by", ""))
    api = Api(http, facts)
    abilities = {need for need, request in _requests(facts.model).items() if await _works(api, *request)}
    if not await _can_switch_reasoning(api):
        abilities.discard(Need.REASONING)
    if Need.GENERATE in abilities:
        api = Api(http, await _with_sample(api))
    return api, frozenset(abilities)


def _requests(model: str) -> dict[Need, tuple[str, dict[str, Any]]]:
    chat = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    return {
        Need.GENERATE: (COMPLETIONS, {"model": model, "prompt": "Hi", "max_tokens": 1}),
        Need.CHAT: (CHAT, chat),
        Need.TOOLS: (CHAT, {**chat, "tools": [_TOOL], "tool_choice": "required"}),
        Need.REASONING: (CHAT, {**chat, "thinking_token_budget": 1}),
        Need.RESPONSES: ("/v1/responses", {"model": model, "input": "Hi", "max_output_tokens": 1}),
        Need.MESSAGES: ("/v1/messages", chat),
        Need.EMBED: ("/v1/embeddings", {"model": model, "input": "Hi"}),
        Need.SCORE: ("/v1/score", {"model": model, "text_1": "Hi", "text_2": "Ho"}),
    }


async def _works(api: Api, path: str, body: dict[str, Any]) -> bool:
    return (await api.post(path, body)).status == 200


async def _can_switch_reasoning(api: Api) -> bool:
    """Whether the chat template can enable and disable reasoning."""
    body: dict[str, Any] = {"model": api.facts.model, "messages": [{"role": "user", "content": "Hi"}]}
    prompts = [
        await api.post("/tokenize", {**body, "chat_template_kwargs": {"enable_thinking": switch}})
        for switch in (True, False)
    ]
    if any(prompt.status != 200 for prompt in prompts):
        return False
    return bool(prompts[0].json["tokens"] != prompts[1].json["tokens"])


async def _with_sample(api: Api) -> Facts:
    """Facts with the prompt whose greedy continuation has the most distinct characters."""
    best, best_text = "", ""
    for prompt in _PROMPTS:
        answer = await api.complete(prompt, max_tokens=NUM_TOKENS)
        text = answer["choices"][0]["text"]
        if not best or len(set(text)) > len(set(best_text)):
            best, best_text = prompt, text
    facts = api.facts
    return Facts(
        facts.model,
        facts.max_model_len,
        facts.owner,
        prompt=best,
        prompt_ids=await api.tokens_of(best, add_special_tokens=True),
        text=best_text,
        token_ids=await _sampled_ids(api, best),
    )


async def _sampled_ids(api: Api, prompt: str) -> list[int]:
    """The token ids of the greedy continuation; empty if the server does not return them."""
    answer = await api.post(
        COMPLETIONS, api.completion_body(prompt, max_tokens=NUM_TOKENS, return_token_ids=True)
    )
    if answer.status != 200:
        return []
    return answer.json["choices"][0].get("token_ids") or []
