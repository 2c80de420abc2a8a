"""What one request may carry: every bound, in one place. docs/limits.md is written from here.

A cap counts what a body holds before anything is made of it (caps.py). Caps are meant to be
far above what clients send (agents with 500 messages, 100 tools of 10 KB, prompts of 200,000 tokens), and
low enough that a request at every one of them delays nobody else noticeably. A test finds any field of a body
that holds a list, a string or an object and stands under none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

# Of every body.
MAX_BODY_BYTES = 32 * 2**20
MAX_JSON_CONTAINERS = 2**17  # lists and objects
MAX_JSON_MEMBERS = 2**17  # fields of objects: each costs a parser five times what a number does
MAX_JSON_VALUES = 2**20
MAX_JSON_ESCAPES = 2**22  # backslashes in strings
MAX_JSON_DEPTH = 200  # pydantic's parser has it
MAX_FIELDS = 256  # of an object whose fields are known: each unknown one would be an error of its own

# Of strings that aren't text for the model.
MAX_NAME_CHARS = 1024  # names and ids
MAX_REQUEST_ID_CHARS = 256
MAX_TOOL_NAME_CHARS = 256
MAX_LABEL_CHARS = 4096  # what is said beside a request, and changes nothing
MAX_DURATION_CHARS = 64

# Of text that becomes tokens: so many bytes of UTF-8, or so many per token of the context, if that is more.
MAX_TEXT_BYTES = 2 * 2**20
TEXT_BYTES_PER_TOKEN = 8

# Of what is asked for.
MAX_CHOICES = 128  # `n`
MAX_SEQUENCES = 2048  # prompts times choices
MAX_PROMPT_TOKENS = 2**23  # of all sequences of a request
MAX_PROMPT_LOGPROBS = 2**19  # of a request's prompts, alternatives included
MAX_ANSWER_LOGPROBS = 2**22  # logprobs of several choices that are answered whole, alternatives included
MAX_PROMPTS = 1024
MAX_STOPS = 256
MAX_BEAMS = 32  # `n` with `use_beam_search`
MAX_BEAM_TOKENS = 2**18  # of all beams together: every step takes their tokens in hand
MAX_CONVERSATIONS = 1024  # of a batch of chats
MAX_NAMED_LOGPROBS = 128  # tokens of `logprob_token_ids`, as vLLM has it
MAX_SALT = 512  # characters
MAX_LISTED = 4096  # entries of lists and tables of tokens and words
MAX_STOP_CHARS = 2**14  # of all together
MAX_BAD_WORD_CHARS = 2**15  # of all together
MAX_BAD_WORD_TOKENS = 64  # of one
MAX_BIAS_CHARS = 2**17  # of all keys of `logit_bias`
MAX_ALLOWED_TOKENS = 2**18  # the largest vocabulary there is
MAX_DETOKENIZED = 2**19

# Of conversations.
MAX_MESSAGES = 10_000
MAX_PARTS = 20_000
MAX_CONVERSATION_VALUES = 2**18
MAX_TOOLS = 512
MAX_TOOL_VALUES = 100_000
MAX_TEMPLATE_VALUES = 10_000  # in chat_template_kwargs
MAX_TEMPLATE_CHARS = 2**20
MAX_DOCUMENTS = 1024
MAX_SEALED_CHARS = 2**23  # of another provider's thoughts, which can't be read
MAX_SCHEMA_VALUES = 100_000
MAX_SCHEMA_CHARS = 2**18  # as much as the grammar compiler is given (engine/structured/structurer.py)
MAX_METADATA = 64
MAX_METADATA_CHARS = 2**16
MAX_ABORTED = 4096  # requests that are ended by their ids

# Of pooling.
MAX_INPUTS = 4096
MAX_PAIR_CHARS = 2**25  # of all pairs of a query and a document

# Whole numbers without a bound of their own: by the end of their path, what bounds them.
BOUNDED_BY = {
    "budget_tokens": "the answer's length",
    "dimensions": "the model's own",
    "logprobs": "`--max-logprobs`",
    "max_completion_tokens": "the context",
    "max_output_tokens": "the context",
    "max_tokens": "the context",
    "max_tokens_per_doc": "the context",
    "max_tokens_per_query": "the context",
    "max_tool_calls": "nothing depends on it",
    "min_tokens": "`max_tokens`",
    "output_dimension": "the model's own",
    "priority": "64 bits",
    "prompt": "a token id: the vocabulary",
    "prompt_logprobs": "`--max-logprobs`",
    "seed": "64 bits",
    "stop_token_ids": "a token id: 64 bits",
    "stream_interval": "the answer's length",
    "thinking_token_budget": "the answer's length",
    "top_k": "the vocabulary",
    "top_logprobs": "`--max-logprobs`",
    "top_n": "the documents",
    "truncate_prompt_tokens": "the prompt's length",
}


class Measure(Enum):
    """What of a value is counted; what has none of it counts 0."""

    ENTRIES = "entries"  # of a list or an object
    INPUTS = "inputs"  # entries of a list, unless they are one input's token ids
    CHARS = "characters"  # of all strings in it, names of fields included
    VALUES = "values"  # all values in it
    TEXT = "bytes of text"  # of what becomes tokens, counted when it does (model_service.py)


@dataclass(frozen=True, slots=True)
class Cap:
    """`path` as clients write it; `[]` stands for each entry of a list, and `total` adds them up.

    Texts that are added up are added to one another, too: the template makes one prompt of them.
    """

    path: str
    most: int
    measure: Measure = Measure.ENTRIES
    total: bool = False

    @property
    def field(self) -> str:
        """The body's own field that it is about."""
        return self.path.partition(".")[0].partition("[")[0]


Caps: TypeAlias = tuple[Cap, ...]


def _strings(most: int, *paths: str) -> Caps:
    return tuple(Cap(path, most, Measure.CHARS) for path in paths)


def _texts(*paths: str) -> Caps:
    """Parts of one prompt."""
    return tuple(Cap(path, MAX_TEXT_BYTES, Measure.TEXT, total=True) for path in paths)


def _prompts(*paths: str) -> Caps:
    """Each a prompt of its own."""
    return tuple(Cap(path, MAX_TEXT_BYTES, Measure.TEXT) for path in paths)


def _values(most: int, *paths: str) -> Caps:
    return tuple(Cap(path, most, Measure.VALUES) for path in paths)


def _schema(path: str) -> Caps:
    return (*_values(MAX_SCHEMA_VALUES, path), *_strings(MAX_SCHEMA_CHARS, path))


def _parts(*paths: str) -> Caps:
    return tuple(Cap(path, MAX_PARTS, total=True) for path in paths)


NAMED: Caps = _strings(MAX_NAME_CHARS, "model")

_SAID_BESIDE: Caps = (
    *_strings(MAX_LABEL_CHARS, "user", "safety_identifier", "prompt_cache_key", "service_tier"),
    *_strings(MAX_REQUEST_ID_CHARS, "request_id"),
    *_strings(MAX_SALT, "cache_salt"),
)

_TEMPLATE: Caps = (
    *_values(MAX_TEMPLATE_VALUES, "chat_template_kwargs"),
    *_strings(MAX_TEMPLATE_CHARS, "chat_template_kwargs"),
)

GENERATION: Caps = (
    *_SAID_BESIDE,
    *_strings(MAX_DURATION_CHARS, "keep_alive"),
    Cap("stop", MAX_STOPS),
    *_strings(MAX_STOP_CHARS, "stop"),
    Cap("stop_token_ids", MAX_LISTED),
    Cap("bad_words", MAX_LISTED),
    *_strings(MAX_BAD_WORD_CHARS, "bad_words"),
    Cap("logit_bias", MAX_LISTED),
    *_strings(MAX_BIAS_CHARS, "logit_bias"),
    Cap("allowed_token_ids", MAX_ALLOWED_TOKENS),
    Cap("logprob_token_ids", MAX_NAMED_LOGPROBS),
    *_schema("response_format"),
    Cap("structured_outputs.choice", MAX_LISTED),
    *_schema("structured_outputs"),
)

COMPLETION: Caps = (
    Cap("prompt", MAX_PROMPTS, Measure.INPUTS),
    *_values(MAX_JSON_VALUES, "prompt"),
    *_prompts("prompt", "prompt[]"),
)


def _turns(turn: str) -> Caps:
    """Of a chat's messages, each of which is at this path."""
    call = f"{turn}.tool_calls[]"
    return (
        Cap(turn, MAX_FIELDS),
        *_parts(f"{turn}.content", f"{turn}.tool_calls"),
        *_strings(MAX_NAME_CHARS, f"{turn}.name", f"{turn}.tool_call_id", f"{call}.id"),
        *_strings(MAX_TOOL_NAME_CHARS, f"{call}.function.name"),
    )


_TEXTS_OF_TURNS = (
    "content",
    "content[].text",
    "reasoning",
    "reasoning_content",
    "tool_calls[].function.arguments",
)

CONVERSATION: Caps = (
    Cap("messages", MAX_MESSAGES),
    *_values(MAX_CONVERSATION_VALUES, "messages"),
    *_turns("messages[]"),
    *_texts(*(f"messages[].{path}" for path in _TEXTS_OF_TURNS)),
    Cap("tools", MAX_TOOLS),
    Cap("tools[]", MAX_FIELDS),
    Cap("tools[].function", MAX_FIELDS),
    *_values(MAX_TOOL_VALUES, "tools"),
    *_strings(MAX_TOOL_NAME_CHARS, "tools[].function.name"),
    *_texts("tools[].function.description", "tools[].function.parameters"),
    Cap("documents", MAX_DOCUMENTS),
    *_values(MAX_TOOL_VALUES, "documents"),
    *_texts("documents[]"),
    *_strings(MAX_TEMPLATE_CHARS, "chat_template"),
    *_TEMPLATE,
)

CHAT: Caps = (
    *_strings(MAX_TOOL_NAME_CHARS, "tool_choice.function.name"),
    Cap("tool_choice.allowed_tools.tools", MAX_TOOLS),
    *_strings(MAX_TOOL_NAME_CHARS, "tool_choice.allowed_tools.tools[].function.name"),
)

CHAT_BATCH: Caps = (
    Cap("messages", MAX_CONVERSATIONS),
    Cap("messages[]", MAX_MESSAGES, total=True),
    *_values(MAX_CONVERSATION_VALUES, "messages"),
    *_turns("messages[][]"),
    *_prompts(*(f"messages[][].{path}" for path in _TEXTS_OF_TURNS)),
)

TOKENIZE: Caps = _prompts("prompt")

DETOKENIZE: Caps = (Cap("tokens", MAX_DETOKENIZED),)

ABORT: Caps = (Cap("request_ids", MAX_ABORTED), *_strings(MAX_NAME_CHARS, "request_ids[]"))


def _offers(tools: str) -> Caps:
    """Of a list of tools, as Responses has them; a namespace has a list of its own."""
    return (
        Cap(f"{tools}[]", MAX_FIELDS),
        Cap(f"{tools}[].tools", MAX_TOOLS),
        Cap(f"{tools}[].tools[]", MAX_FIELDS),
        *(
            cap
            for tool in (f"{tools}[]", f"{tools}[].tools[]")
            for cap in (
                *_strings(MAX_TOOL_NAME_CHARS, f"{tool}.name"),
                *_strings(MAX_LABEL_CHARS, f"{tool}.type", f"{tool}.execution"),
                *_texts(f"{tool}.description", f"{tool}.parameters", f"{tool}.format.definition"),
            )
        ),
    )


RESPONSES: Caps = (
    Cap("input", MAX_MESSAGES),
    *_values(MAX_CONVERSATION_VALUES, "input"),
    Cap("input[]", MAX_FIELDS),
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
    Cap("input[].tools", MAX_TOOLS, total=True),
    *_offers("input[].tools"),
    *_strings(MAX_NAME_CHARS, "previous_response_id"),
    Cap("tools", MAX_TOOLS),
    *_values(MAX_TOOL_VALUES, "tools"),
    *_offers("tools"),
    Cap("tool_choice.tools", MAX_TOOLS),
    *_values(MAX_TOOL_VALUES, "tool_choice"),
    *_strings(MAX_NAME_CHARS, "tool_choice.name", "tool_choice.namespace", "tool_choice.type"),
    *_strings(MAX_TEMPLATE_CHARS, "tool_choice.tools"),
    *_schema("text"),
    Cap("include", MAX_METADATA),
    *_strings(MAX_NAME_CHARS, "include[]"),
    Cap("metadata", MAX_METADATA),
    *_strings(MAX_METADATA_CHARS, "metadata"),
    *_TEMPLATE,
)

MESSAGES: Caps = (
    Cap("messages", MAX_MESSAGES),
    *_values(MAX_CONVERSATION_VALUES, "messages"),
    Cap("messages[]", MAX_FIELDS),
    *_parts("messages[].content", "messages[].content[].content"),
    Cap("messages[].content[]", MAX_FIELDS),
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
    Cap("tools", MAX_TOOLS),
    Cap("tools[]", MAX_FIELDS),
    *_values(MAX_TOOL_VALUES, "tools"),
    *_strings(MAX_TOOL_NAME_CHARS, "tools[].name", "tool_choice.name"),
    *_strings(MAX_LABEL_CHARS, "tools[].type", "tools[].allowed_callers"),
    *_texts(*(f"tools[].{name}" for name in ("description", "input_examples[]", "input_schema"))),
    Cap("stop_sequences", MAX_STOPS),
    *_strings(MAX_STOP_CHARS, "stop_sequences"),
    *_schema("output_config"),
    *_schema("output_format"),
    *_values(MAX_TEMPLATE_VALUES, "context_management"),
    *_strings(MAX_TEMPLATE_CHARS, "context_management"),
    *_strings(MAX_SALT, "cache_salt"),
    *_TEMPLATE,
)

POOLED: Caps = _SAID_BESIDE

POOLING: Caps = (
    Cap("input", MAX_INPUTS, Measure.INPUTS),
    *_values(MAX_JSON_VALUES, "input"),
    *_prompts("input", "input[]"),
)

COHERE: Caps = (
    *_strings(MAX_NAME_CHARS, "input_type"),
    Cap("texts", MAX_INPUTS),
    Cap("inputs", MAX_INPUTS),
    *_parts("inputs[].content"),
    *_prompts("texts[]", "inputs[].content[].text"),
    Cap("embedding_types", MAX_METADATA),
)


def _sides(*names: str) -> Caps:
    """Of pairs."""
    return tuple(
        cap
        for name in names
        for cap in (
            Cap(name, MAX_INPUTS),
            *_parts(f"{name}.content", f"{name}[].content"),
            *_prompts(name, f"{name}[]"),
        )
    )


PAIRS: Caps = (*_texts("instruction"), *_TEMPLATE)
RANKED: Caps = _sides("query", "documents")
SCORED: Caps = _sides("text_1", "text_2")


def most_text_bytes(max_model_len: int) -> int:
    """Of a text that is to become tokens."""
    return max(MAX_TEXT_BYTES, TEXT_BYTES_PER_TOKEN * max_model_len)
