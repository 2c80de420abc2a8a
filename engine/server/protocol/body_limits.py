"""Size limits of each request body, by field. docs/limits.md is generated from them.

A limit counts what a field holds before the body is validated (size_check.py). A test fails for any field of
a body that holds a list, a string or an object and that no limit covers.
"""

from __future__ import annotations

from engine.server.protocol.limits import (
    MAX_ABORTED,
    MAX_ALLOWED_TOKENS,
    MAX_BAD_WORD_CHARS,
    MAX_BIAS_CHARS,
    MAX_CONVERSATION_VALUES,
    MAX_CONVERSATIONS,
    MAX_DETOKENIZED,
    MAX_DOCUMENTS,
    MAX_DURATION_CHARS,
    MAX_FIELDS,
    MAX_INPUTS,
    MAX_JSON_VALUES,
    MAX_LABEL_CHARS,
    MAX_LISTED,
    MAX_MESSAGES,
    MAX_METADATA,
    MAX_METADATA_CHARS,
    MAX_NAME_CHARS,
    MAX_NAMED_LOGPROBS,
    MAX_PARTS,
    MAX_PROMPTS,
    MAX_REQUEST_ID_CHARS,
    MAX_SALT,
    MAX_SCHEMA_CHARS,
    MAX_SCHEMA_VALUES,
    MAX_SEALED_CHARS,
    MAX_STOP_CHARS,
    MAX_STOPS,
    MAX_TEMPLATE_CHARS,
    MAX_TEMPLATE_VALUES,
    MAX_TEXT_BYTES,
    MAX_TOOL_NAME_CHARS,
    MAX_TOOL_VALUES,
    MAX_TOOLS,
)
from engine.server.protocol.size_limit import Measure, SizeLimit, SizeLimits


def _strings(most: int, *paths: str) -> SizeLimits:
    return tuple(SizeLimit(path, most, Measure.CHARS) for path in paths)


def _texts(*paths: str) -> SizeLimits:
    """Texts that become parts of one prompt."""
    return tuple(SizeLimit(path, MAX_TEXT_BYTES, Measure.TEXT, total=True) for path in paths)


def _prompts(*paths: str) -> SizeLimits:
    """Texts that each become a prompt."""
    return tuple(SizeLimit(path, MAX_TEXT_BYTES, Measure.TEXT) for path in paths)


def _values(most: int, *paths: str) -> SizeLimits:
    return tuple(SizeLimit(path, most, Measure.VALUES) for path in paths)


def _schema(path: str) -> SizeLimits:
    return (*_values(MAX_SCHEMA_VALUES, path), *_strings(MAX_SCHEMA_CHARS, path))


def _parts(*paths: str) -> SizeLimits:
    return tuple(SizeLimit(path, MAX_PARTS, total=True) for path in paths)


NAMED: SizeLimits = _strings(MAX_NAME_CHARS, "model")

_LABELS: SizeLimits = _strings(
    MAX_LABEL_CHARS, "user", "safety_identifier", "prompt_cache_key", "service_tier"
)
_IDENTITY: SizeLimits = (*_strings(MAX_REQUEST_ID_CHARS, "request_id"), *_strings(MAX_SALT, "cache_salt"))
_STOPS: SizeLimits = (SizeLimit("stop", MAX_STOPS), *_strings(MAX_STOP_CHARS, "stop"))

_TEMPLATE: SizeLimits = (
    *_values(MAX_TEMPLATE_VALUES, "chat_template_kwargs"),
    *_strings(MAX_TEMPLATE_CHARS, "chat_template_kwargs"),
)

SAMPLING: SizeLimits = (
    *_IDENTITY,
    SizeLimit("stop_token_ids", MAX_LISTED),
    SizeLimit("bad_words", MAX_LISTED),
    *_strings(MAX_BAD_WORD_CHARS, "bad_words"),
    SizeLimit("logit_bias", MAX_LISTED),
    *_strings(MAX_BIAS_CHARS, "logit_bias"),
    SizeLimit("allowed_token_ids", MAX_ALLOWED_TOKENS),
    SizeLimit("structured_outputs.choice", MAX_LISTED),
    *_schema("structured_outputs"),
)

GENERATION: SizeLimits = (
    *_LABELS,
    *_strings(MAX_DURATION_CHARS, "keep_alive"),
    *_STOPS,
    SizeLimit("logprob_token_ids", MAX_NAMED_LOGPROBS),
    *_schema("response_format"),
)

RESPONSES_GENERATION: SizeLimits = (*_LABELS, *_STOPS)

COMPLETION: SizeLimits = (
    SizeLimit("prompt", MAX_PROMPTS, Measure.INPUTS),
    *_values(MAX_JSON_VALUES, "prompt"),
    *_prompts("prompt", "prompt[]"),
)


def _turns(turn: str) -> SizeLimits:
    """Limits of a chat's messages; `turn` is the path of one."""
    call = f"{turn}.tool_calls[]"
    return (
        SizeLimit(turn, MAX_FIELDS),
        *_parts(f"{turn}.content", f"{turn}.tool_calls"),
        *_strings(MAX_NAME_CHARS, f"{turn}.name", f"{turn}.tool_call_id", f"{call}.id"),
        *_strings(MAX_TOOL_NAME_CHARS, f"{call}.function.name"),
    )


_TURN_TEXTS = (
    "content",
    "content[].text",
    "reasoning",
    "reasoning_content",
    "tool_calls[].function.arguments",
)

CONVERSATION: SizeLimits = (
    SizeLimit("messages", MAX_MESSAGES),
    *_values(MAX_CONVERSATION_VALUES, "messages"),
    *_turns("messages[]"),
    *_texts(*(f"messages[].{path}" for path in _TURN_TEXTS)),
    SizeLimit("tools", MAX_TOOLS),
    SizeLimit("tools[]", MAX_FIELDS),
    SizeLimit("tools[].function", MAX_FIELDS),
    *_values(MAX_TOOL_VALUES, "tools"),
    *_strings(MAX_TOOL_NAME_CHARS, "tools[].function.name"),
    *_texts("tools[].function.description", "tools[].function.parameters"),
    SizeLimit("documents", MAX_DOCUMENTS),
    *_values(MAX_TOOL_VALUES, "documents"),
    *_texts("documents[]"),
    *_strings(MAX_TEMPLATE_CHARS, "chat_template"),
    *_TEMPLATE,
)

CHAT: SizeLimits = (
    *_strings(MAX_TOOL_NAME_CHARS, "tool_choice.function.name"),
    SizeLimit("tool_choice.allowed_tools.tools", MAX_TOOLS),
    *_strings(MAX_TOOL_NAME_CHARS, "tool_choice.allowed_tools.tools[].function.name"),
)

CHAT_BATCH: SizeLimits = (
    SizeLimit("messages", MAX_CONVERSATIONS),
    SizeLimit("messages[]", MAX_MESSAGES, total=True),
    *_values(MAX_CONVERSATION_VALUES, "messages"),
    *_turns("messages[][]"),
    *_prompts(*(f"messages[][].{path}" for path in _TURN_TEXTS)),
)

TOKENIZE: SizeLimits = _prompts("prompt")

DETOKENIZE: SizeLimits = (SizeLimit("tokens", MAX_DETOKENIZED),)

LOAD_ADAPTER: SizeLimits = _strings(MAX_NAME_CHARS, "lora_name", "lora_path")
UNLOAD_ADAPTER: SizeLimits = _strings(MAX_NAME_CHARS, "lora_name")
ABORT: SizeLimits = (SizeLimit("request_ids", MAX_ABORTED), *_strings(MAX_NAME_CHARS, "request_ids[]"))


def _tools(tools: str) -> SizeLimits:
    """Limits of a list of tools in the Responses API; a namespace has its own list."""
    return (
        SizeLimit(f"{tools}[]", MAX_FIELDS),
        SizeLimit(f"{tools}[].tools", MAX_TOOLS),
        SizeLimit(f"{tools}[].tools[]", MAX_FIELDS),
        *(
            limit
            for tool in (f"{tools}[]", f"{tools}[].tools[]")
            for limit in (
                *_strings(MAX_TOOL_NAME_CHARS, f"{tool}.name"),
                *_strings(MAX_LABEL_CHARS, f"{tool}.type", f"{tool}.execution"),
                *_texts(f"{tool}.description", f"{tool}.parameters", f"{tool}.format.definition"),
            )
        ),
    )


RESPONSES: SizeLimits = (
    SizeLimit("input", MAX_MESSAGES),
    *_values(MAX_CONVERSATION_VALUES, "input"),
    SizeLimit("input[]", MAX_FIELDS),
    *_parts("input[].content", "input[].output", "input[].summary"),
    *_strings(
        MAX_NAME_CHARS,
        *(f"input[].{name}" for name in ("call_id", "id", "name", "namespace")),
    ),
    *_strings(
        MAX_LABEL_CHARS,
        *(f"input[].{name}" for name in ("execution", "phase", "role", "status", "type")),
        "input[].output[].type",
    ),
    *_strings(MAX_SEALED_CHARS, "input[].encrypted_content"),
    *_texts(
        "input",
        *(f"input[].{name}" for name in ("arguments", "content", "input", "output")),
        *(f"input[].{name}[].text" for name in ("content", "output", "summary")),
        *(f"input[].{name}[].refusal" for name in ("content", "output")),
        "instructions",
    ),
    SizeLimit("input[].tools", MAX_TOOLS, total=True),
    *_tools("input[].tools"),
    *_strings(MAX_NAME_CHARS, "previous_response_id"),
    SizeLimit("tools", MAX_TOOLS),
    *_values(MAX_TOOL_VALUES, "tools"),
    *_tools("tools"),
    SizeLimit("tool_choice.tools", MAX_TOOLS),
    *_values(MAX_TOOL_VALUES, "tool_choice"),
    *_strings(MAX_NAME_CHARS, "tool_choice.name", "tool_choice.namespace", "tool_choice.type"),
    *_strings(MAX_TEMPLATE_CHARS, "tool_choice.tools"),
    *_schema("text"),
    SizeLimit("include", MAX_METADATA),
    *_strings(MAX_NAME_CHARS, "include[]"),
    SizeLimit("metadata", MAX_METADATA),
    *_strings(MAX_METADATA_CHARS, "metadata"),
    *_TEMPLATE,
)

MESSAGES: SizeLimits = (
    SizeLimit("messages", MAX_MESSAGES),
    *_values(MAX_CONVERSATION_VALUES, "messages"),
    SizeLimit("messages[]", MAX_FIELDS),
    *_parts("messages[].content", "messages[].content[].content"),
    SizeLimit("messages[].content[]", MAX_FIELDS),
    *_strings(MAX_NAME_CHARS, "messages[].content[].id", "messages[].content[].tool_use_id"),
    *_strings(MAX_TOOL_NAME_CHARS, "messages[].content[].name"),
    *_texts(
        "messages[].content",
        *(f"messages[].content[].{name}" for name in ("content", "input", "text", "thinking")),
        "messages[].content[].content[].text",
        "system",
        "system[].text",
    ),
    *_parts("system"),
    *_values(MAX_CONVERSATION_VALUES, "system"),
    SizeLimit("tools", MAX_TOOLS),
    SizeLimit("tools[]", MAX_FIELDS),
    *_values(MAX_TOOL_VALUES, "tools"),
    *_strings(MAX_TOOL_NAME_CHARS, "tools[].name", "tool_choice.name"),
    *_strings(MAX_LABEL_CHARS, "tools[].type", "tools[].allowed_callers"),
    *_texts(*(f"tools[].{name}" for name in ("description", "input_examples[]", "input_schema"))),
    SizeLimit("stop_sequences", MAX_STOPS),
    *_strings(MAX_STOP_CHARS, "stop_sequences"),
    *_schema("output_config"),
    *_schema("output_format"),
    *_values(MAX_TEMPLATE_VALUES, "context_management"),
    *_strings(MAX_TEMPLATE_CHARS, "context_management"),
    *_TEMPLATE,
)

POOLED: SizeLimits = (*_LABELS, *_IDENTITY)

POOLING: SizeLimits = (
    SizeLimit("input", MAX_INPUTS, Measure.INPUTS),
    *_values(MAX_JSON_VALUES, "input"),
    *_prompts("input", "input[]"),
)

COHERE: SizeLimits = (
    *_strings(MAX_NAME_CHARS, "input_type"),
    SizeLimit("texts", MAX_INPUTS),
    SizeLimit("inputs", MAX_INPUTS),
    *_parts("inputs[].content"),
    *_prompts("texts[]", "inputs[].content[].text"),
    SizeLimit("embedding_types", MAX_METADATA),
)


def _pair_sides(*names: str) -> SizeLimits:
    """Limits of the two sides of pairs."""
    return tuple(
        limit
        for name in names
        for limit in (
            SizeLimit(name, MAX_INPUTS),
            *_parts(f"{name}.content", f"{name}[].content"),
            *_prompts(name, f"{name}[]"),
        )
    )


PAIRS: SizeLimits = (*_texts("instruction"), *_TEMPLATE)
RANKED: SizeLimits = _pair_sides("query", "documents")
SCORED: SizeLimits = _pair_sides("text_1", "text_2")
