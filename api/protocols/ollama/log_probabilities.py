"""Log probabilities, from OpenAI's two shapes to Ollama's. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def from_openai(logprobs: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Those of a choice: `content` of a chat, or the parallel lists of a completion."""
    if not logprobs:
        return []
    if logprobs.get("content") is not None:
        return [
            _token(one) | {"top_logprobs": [_token(other) for other in one.get("top_logprobs") or ()]}
            for one in logprobs["content"]
        ]
    tokens, values = logprobs.get("tokens") or (), logprobs.get("token_logprobs") or ()
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    return [
        {"token": token, "logprob": value, "top_logprobs": _pairs(top)}
        for token, value, top in zip(tokens, values, tops, strict=False)
        if value is not None
    ]


def _token(one: Mapping[str, Any]) -> dict[str, Any]:
    made = {"token": one.get("token"), "logprob": one.get("logprob")}
    return made if one.get("bytes") is None else made | {"bytes": one["bytes"]}


def _pairs(top: Mapping[str, float] | None) -> list[dict[str, Any]]:
    return [{"token": token, "logprob": value} for token, value in (top or {}).items()]
