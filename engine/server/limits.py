"""What one request may carry: every bound, in one place. docs/limits.md is written from here.

A cap counts what a body holds before anything is made of it (engine/server/caps.py). Caps are meant to be
far above what clients send (agents with 500 messages, 100 tools of 10 KB, prompts of 200,000 tokens), and
low enough that a request at every one of them delays nobody else noticeably.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

# Of every body.
MAX_BODY_BYTES = 32 * 2**20
MAX_JSON_CONTAINERS = 2**18  # lists and objects
MAX_JSON_MEMBERS = 2**18  # fields of objects: each costs a parser five times what a number does
MAX_JSON_VALUES = 2**21
MAX_JSON_DEPTH = 200  # pydantic's parser has it
MAX_FIELDS = 256  # of an object whose fields are known: each unknown one would be an error of its own

# Of text that becomes tokens: so many bytes of UTF-8, or so many per token of the context, if that is more.
MAX_TEXT_BYTES = 4 * 2**20
TEXT_BYTES_PER_TOKEN = 8

# Of what is asked for.
MAX_CHOICES = 128  # `n`
MAX_SEQUENCES = 2048  # prompts times choices
MAX_PROMPT_TOKENS = 2**23  # of all sequences of a request
MAX_TOLD_LOGPROBS = 2**19  # of a request's prompts, alternatives included
MAX_PROMPTS = 1024
MAX_STOPS = 4
MAX_BEAMS = 32  # `n` with `use_beam_search`
MAX_BEAM_TOKENS = 2**18  # of all beams together: every step takes their tokens in hand
MAX_CONVERSATIONS = 1024  # of a batch of chats
MAX_NAMED_LOGPROBS = 128  # tokens of `logprob_token_ids`, as vLLM has it
MAX_SALT = 512  # characters
MAX_LISTED = 4096  # entries of lists and tables of tokens and words
MAX_STOP_CHARS = 4096
MAX_BAD_WORD_CHARS = 2**15  # of all together
MAX_BAD_WORD_TOKENS = 64  # of one
MAX_ALLOWED_TOKENS = 2**18  # the largest vocabulary there is
MAX_DETOKENIZED = 2**20

# Of conversations.
MAX_MESSAGES = 10_000
MAX_PARTS = 20_000
MAX_TOOLS = 512
MAX_TOOL_VALUES = 100_000
MAX_TEMPLATE_VALUES = 10_000  # in chat_template_kwargs
MAX_TEMPLATE_CHARS = 2**20
MAX_DOCUMENTS = 1024
MAX_SCHEMA_VALUES = 100_000
MAX_SCHEMA_CHARS = 2**20
MAX_METADATA = 64
MAX_METADATA_CHARS = 2**16
MAX_STOP_SEQUENCES = 256
MAX_STOP_SEQUENCE_CHARS = 2**14

# Of pooling.
MAX_INPUTS = 4096
MAX_PAIR_CHARS = 2**25  # of all pairs of a query and a document


class Measure(Enum):
    """What of a value is counted; what has none of it counts 0."""

    ENTRIES = "entries"  # of a list or an object
    INPUTS = "inputs"  # entries of a list, unless they are one input's token ids
    CHARS = "characters"  # of all strings in it, names of fields included
    VALUES = "values"  # all values in it


@dataclass(frozen=True, slots=True)
class Cap:
    """`path` as clients write it; `[]` stands for each entry of a list, and `total` adds them up."""

    path: str
    most: int
    measure: Measure = Measure.ENTRIES
    total: bool = False

    @property
    def field(self) -> str:
        """The body's own field that it is about."""
        return self.path.partition(".")[0].partition("[")[0]


Caps: TypeAlias = tuple[Cap, ...]

_TOOLS: Caps = (Cap("tools", MAX_TOOLS), Cap("tools", MAX_TOOL_VALUES, Measure.VALUES))

_TEMPLATE: Caps = (
    Cap("chat_template_kwargs", MAX_TEMPLATE_VALUES, Measure.VALUES),
    Cap("chat_template_kwargs", MAX_TEMPLATE_CHARS, Measure.CHARS),
)

GENERATION: Caps = (
    Cap("stop", MAX_STOPS),
    Cap("stop", MAX_STOP_CHARS, Measure.CHARS),
    Cap("stop_token_ids", MAX_LISTED),
    Cap("bad_words", MAX_LISTED),
    Cap("bad_words", MAX_BAD_WORD_CHARS, Measure.CHARS),
    Cap("logit_bias", MAX_LISTED),
    Cap("allowed_token_ids", MAX_ALLOWED_TOKENS),
    Cap("response_format", MAX_SCHEMA_VALUES, Measure.VALUES),
    Cap("response_format", MAX_SCHEMA_CHARS, Measure.CHARS),
    Cap("structured_outputs.choice", MAX_LISTED),
    Cap("structured_outputs", MAX_SCHEMA_VALUES, Measure.VALUES),
    Cap("structured_outputs", MAX_SCHEMA_CHARS, Measure.CHARS),
)

COMPLETION: Caps = (Cap("prompt", MAX_PROMPTS, Measure.INPUTS),)

CONVERSATION: Caps = (
    Cap("messages", MAX_MESSAGES),
    Cap("messages[]", MAX_FIELDS),
    Cap("messages[].content", MAX_PARTS, total=True),
    Cap("messages[].tool_calls", MAX_PARTS, total=True),
    *_TOOLS,
    Cap("documents", MAX_DOCUMENTS),
    Cap("documents", MAX_TOOL_VALUES, Measure.VALUES),
    Cap("chat_template", MAX_TEMPLATE_CHARS, Measure.CHARS),
    *_TEMPLATE,
)

CHAT: Caps = (Cap("tool_choice.allowed_tools.tools", MAX_TOOLS),)

CHAT_BATCH: Caps = (
    Cap("messages", MAX_CONVERSATIONS),
    Cap("messages[]", MAX_MESSAGES, total=True),
    Cap("messages[][]", MAX_FIELDS),
    Cap("messages[][].content", MAX_PARTS, total=True),
    Cap("messages[][].tool_calls", MAX_PARTS, total=True),
)

DETOKENIZE: Caps = (Cap("tokens", MAX_DETOKENIZED),)

RESPONSES: Caps = (
    Cap("input", MAX_MESSAGES),
    Cap("input[]", MAX_FIELDS),
    Cap("input[].content", MAX_PARTS, total=True),
    Cap("input[].output", MAX_PARTS, total=True),
    Cap("input[].summary", MAX_PARTS, total=True),
    Cap("input[].tools", MAX_TOOLS, total=True),
    *_TOOLS,
    Cap("tool_choice.tools", MAX_TOOLS),
    Cap("text", MAX_SCHEMA_VALUES, Measure.VALUES),
    Cap("text", MAX_SCHEMA_CHARS, Measure.CHARS),
    Cap("include", MAX_METADATA),
    Cap("metadata", MAX_METADATA),
    Cap("metadata", MAX_METADATA_CHARS, Measure.CHARS),
    *_TEMPLATE,
)

MESSAGES: Caps = (
    Cap("messages", MAX_MESSAGES),
    Cap("messages[]", MAX_FIELDS),
    Cap("messages[].content", MAX_PARTS, total=True),
    Cap("messages[].content[].content", MAX_PARTS, total=True),
    Cap("system", MAX_PARTS),
    *_TOOLS,
    Cap("stop_sequences", MAX_STOP_SEQUENCES),
    Cap("stop_sequences", MAX_STOP_SEQUENCE_CHARS, Measure.CHARS),
    Cap("output_config", MAX_SCHEMA_VALUES, Measure.VALUES),
    Cap("output_config", MAX_SCHEMA_CHARS, Measure.CHARS),
    Cap("output_format", MAX_SCHEMA_VALUES, Measure.VALUES),
    Cap("output_format", MAX_SCHEMA_CHARS, Measure.CHARS),
    Cap("context_management", MAX_TEMPLATE_VALUES, Measure.VALUES),
    *_TEMPLATE,
)

POOLING: Caps = (Cap("input", MAX_INPUTS, Measure.INPUTS),)

COHERE: Caps = (
    Cap("texts", MAX_INPUTS),
    Cap("inputs", MAX_INPUTS),
    Cap("inputs[].content", MAX_PARTS, total=True),
    Cap("embedding_types", MAX_METADATA),
)

PAIRS: Caps = (
    Cap("query.content", MAX_PARTS),
    Cap("documents", MAX_INPUTS),
    Cap("documents[].content", MAX_PARTS, total=True),
    Cap("text_1", MAX_INPUTS),
    Cap("text_1[].content", MAX_PARTS, total=True),
    Cap("text_2", MAX_INPUTS),
    Cap("text_2[].content", MAX_PARTS, total=True),
    *_TEMPLATE,
)


def most_text_bytes(max_model_len: int) -> int:
    """Of a text that is to become tokens."""
    return max(MAX_TEXT_BYTES, TEXT_BYTES_PER_TOKEN * max_model_len)
