"""Fields that OpenAI or vLLM know and we don't yet, each with the values that ask for nothing.

Null asks for nothing anywhere. Any other value than these is refused by name: a field that is taken and then
ignored would be a lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import InvalidRequest

_COMMON: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": (),
    "bad_words": ([],),
    "cache_salt": (),
    "ec_transfer_params": (),
    "frequency_penalty": (0,),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logprob_token_ids": (),
    "logprobs": (False,),
    "metadata": ({},),
    "mm_payload": ("tensors",),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "prompt_logprobs": (),
    "repetition_detection": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "return_mm_kwargs": (False,),
    "return_token_ids": (False,),
    "return_token_offsets": (False,),
    "return_tokens_as_token_ids": (False,),
    "routed_experts_prompt_start": (0,),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "session_id": (),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "stream_interval": (1,),
    "structured_outputs": (),
    "thinking_token_budget": (-1,),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "watermarking": (False,),
}

COMPLETION: dict[str, tuple[Any, ...]] = {
    **_COMMON,
    "best_of": (1,),
    "prompt_embeds": (),
    "suffix": ("",),
}

_CONVERSATION: dict[str, tuple[Any, ...]] = {
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
}

CHAT: dict[str, tuple[Any, ...]] = {
    **_COMMON,
    **_CONVERSATION,
    "audio": (),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_reasoning": (True,),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True,),
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "return_prompt_text": (False,),
    "top_logprobs": (0,),
    "verbosity": (),
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
            raise InvalidRequest(f"{name!r} is not supported yet.", param=name)
    return kept


def _same(value: Any, other: Any) -> bool:
    """Equal, and not merely as True equals 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
