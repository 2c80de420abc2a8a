"""Fields that OpenAI or vLLM know and we don't, each with the values that ask for nothing.

Null asks for nothing anywhere. Any other value than these is refused by name: a field that is taken and then
ignored would be a lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import InvalidRequest

_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend")
INSTEAD = {
    **dict.fromkeys(_GUIDED, "use structured_outputs"),
    "functions": "use tools",
    "function_call": "use tool_choice",
    "prompt_embeds": "give text or token ids",
    "use_beam_search": "use n and temperature",
}
"""What does the job of a refused field, where something does."""

_COMMON: dict[str, tuple[Any, ...]] = {
    "cache_salt": (),
    "ec_transfer_params": (),
    **dict.fromkeys(_GUIDED, ()),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logprob_token_ids": (),
    "metadata": ({},),
    "mm_payload": ("tensors",),
    "repetition_detection": (),
    "return_mm_kwargs": (False,),
    "return_token_offsets": (False,),
    "routed_experts_prompt_start": (0,),
    "service_tier": ("auto", "default"),
    "session_id": (),
    "store": (False,),
    "stream_interval": (1,),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "watermarking": (False,),
}

COMPLETION: dict[str, tuple[Any, ...]] = {
    **_COMMON,
    "best_of": (1,),
    "prompt_embeds": (),
    "suffix": ("",),
    "thinking_token_budget": (-1,),
}

_CONVERSATION: dict[str, tuple[Any, ...]] = {
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
}

CHAT: dict[str, tuple[Any, ...]] = {
    **_COMMON,
    **_CONVERSATION,
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "verbosity": ("medium",),
    "web_search_options": (),
}

TOKENIZE: dict[str, tuple[Any, ...]] = _CONVERSATION


def drop_refused(body: Mapping[str, Any], refused: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The body without those of its fields that ask for nothing. Raises InvalidRequest for one that does."""
    kept = {}
    for name, value in body.items():
        neutral = refused.get(name)
        if neutral is None:
            kept[name] = value
        elif value is not None and not any(_same(value, other) for other in neutral):
            hint = f": {INSTEAD[name]} instead" if name in INSTEAD else ""
            raise InvalidRequest(f"{name!r} is not supported{hint}.", param=name)
    return kept


def _same(value: Any, other: Any) -> bool:
    """Equal, and not merely as True equals 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
