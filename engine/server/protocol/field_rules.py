"""Known fields of OpenAI, vLLM or other servers that this engine does not implement.

A field that would change the output is refused by name, except for its neutral values. One that cannot change
it (a hint, a billing or cache label, a display preference) is accepted. One that asks for something in
addition, such as a web search, is ignored and named in a warning. Null is neutral everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.errors import InvalidRequest
from engine.server.protocol.unknown_fields import report_ignored

_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend")
ALTERNATIVES = {
    **dict.fromkeys(_GUIDED, "use structured_outputs"),
    "functions": "use tools",
    "normalize": "use use_activation",
    "function_call": "use tool_choice",
    "prompt_embeds": "give text or token ids",
}
"""What to use instead of a refused field, if there is an alternative."""


@dataclass(frozen=True, slots=True)
class FieldRules:
    """How to treat a body's fields that its model does not declare."""

    refused: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """By name, with the neutral values."""
    accepted: frozenset[str] = frozenset()
    """Accepted silently: they cannot change the output."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Ignored with a warning: by name, the reason."""

    def __or__(self, other: FieldRules) -> FieldRules:
        return FieldRules(
            {**self.refused, **other.refused},
            self.accepted | other.accepted,
            {**self.ignored, **other.ignored},
        )

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.refused) | self.accepted | frozenset(self.ignored)


_COMMON = FieldRules(
    refused={
        "early_stopping": (False,),
        "ec_transfer_params": (),
        **dict.fromkeys(_GUIDED, ()),
        "kv_transfer_params": (),
        "mm_payload": ("tensors",),
        "repetition_detection": (),
        "return_mm_kwargs": (False,),
        "return_token_offsets": (False,),
        "routed_experts_prompt_start": (0,),
        "vllm_xargs": ({},),
        "watermarking": (False,),
    },
    accepted=frozenset(
        {
            "metadata",
            "service_tier",
            "session_id",
            "store",
        }
    ),
)

COMPLETION = _COMMON | FieldRules(
    refused={"best_of": (1,), "prompt_embeds": (), "suffix": ("",), "thinking_token_budget": (-1,)}
)

_CONVERSATION = FieldRules(refused={"media_io_kwargs": ({},), "mm_processor_kwargs": ({},)})

CHAT = (
    _COMMON
    | _CONVERSATION
    | FieldRules(
        refused={
            "audio": (),
            "function_call": ("none", "auto"),
            "functions": ([],),
            "modalities": (["text"],),
            "moderation": (),
        },
        accepted=frozenset({"prediction", "prompt_cache_options", "prompt_cache_retention", "verbosity"}),
        ignored={"web_search_options": "this server can't search the web"},
    )
)

CHAT_BATCH = CHAT | FieldRules(refused={"best_of": (1,)})

TOKENIZE = _CONVERSATION

NO_RULES = FieldRules()


def apply_rules(body: Mapping[str, Any], rules: FieldRules) -> dict[str, Any]:
    """The body without accepted and ignored fields. Raises InvalidRequest for a refused field."""
    kept = {}
    for name, value in body.items():
        if name in rules.refused:
            _check_refused(name, value, rules.refused[name])
        elif name in rules.ignored:
            if value is not None and value != []:
                report_ignored(name, rules.ignored[name])
        elif name not in rules.accepted:
            kept[name] = value
    return kept


def _check_refused(name: str, value: Any, neutral: tuple[Any, ...]) -> None:
    if value is None or any(_is_same_value(value, other) for other in neutral):
        return
    hint = f": {ALTERNATIVES[name]} instead" if name in ALTERNATIVES else ""
    raise InvalidRequest(f"{name!r} is not supported{hint}.", param=name)


def _is_same_value(value: Any, other: Any) -> bool:
    """Equal, and not just as True equals 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
