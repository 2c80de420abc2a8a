"""Limits of one request. docs/limits.md is generated from them; body_limits.py applies them to fields.

Limits are far above what clients send (agents with 500 messages, 100 tools of 10 KB, prompts of 200,000
tokens), and low enough that a request at all limits does not noticeably delay others.
"""

from __future__ import annotations

# Any body.
MAX_BODY_BYTES = 32 * 2**20
MAX_JSON_CONTAINERS = 2**17  # lists and objects
MAX_JSON_MEMBERS = 2**17  # fields of objects: each costs the parser five times as much as a number
MAX_JSON_VALUES = 2**20
MAX_JSON_ESCAPES = 2**22  # backslashes in strings
MAX_JSON_DEPTH = 200  # enforced by pydantic's parser
MAX_FIELDS = 256  # of an object with known fields: each unknown one would be an error of its own

# Strings that are not text for the model.
MAX_NAME_CHARS = 1024  # names and ids
MAX_REQUEST_ID_CHARS = 256
MAX_TOOL_NAME_CHARS = 256
MAX_LABEL_CHARS = 4096  # metadata that does not change the response
MAX_DURATION_CHARS = 64

# Text to be tokenized: bytes of UTF-8, or bytes per token of the context if that is more.
MAX_TEXT_BYTES = 2 * 2**20
TEXT_BYTES_PER_TOKEN = 8

# Requested output and prompts.
MAX_CHOICES = 128  # `n`
MAX_SEQUENCES = 2048  # prompts times choices
MAX_PROMPT_TOKENS = 2**23  # over all sequences of a request
MAX_PROMPT_LOGPROBS = 2**19  # of a request's prompts, including alternatives
MAX_ANSWER_LOGPROBS = 2**22  # of a non-streamed response with several choices, including alternatives
MAX_PROMPTS = 1024
MAX_STOPS = 256
MAX_BEAMS = 32  # `n` with `use_beam_search`
MAX_BEAM_TOKENS = 2**18  # of all beams together: every step copies their tokens
MAX_CONVERSATIONS = 1024  # in a batch of chats
MAX_NAMED_LOGPROBS = 128  # entries of `logprob_token_ids`, as in vLLM
MAX_SALT = 512  # characters
MAX_LISTED = 4096  # entries of lists and maps of tokens or words
MAX_STOP_CHARS = 2**14  # total
MAX_BAD_WORD_CHARS = 2**15  # total
MAX_BAD_WORD_TOKENS = 64  # of one word
MAX_BIAS_CHARS = 2**17  # total, of the keys of `logit_bias`
MAX_ALLOWED_TOKENS = 2**18  # the largest known vocabulary
MAX_DETOKENIZED = 2**19

# Conversations.
MAX_MESSAGES = 10_000
MAX_PARTS = 20_000
MAX_CONVERSATION_VALUES = 2**18
MAX_TOOLS = 512
MAX_TOOL_VALUES = 100_000
MAX_TEMPLATE_VALUES = 10_000  # in chat_template_kwargs
MAX_TEMPLATE_CHARS = 2**20
MAX_DOCUMENTS = 1024
MAX_SEALED_CHARS = 2**23  # of another provider's encrypted reasoning, which is not read
MAX_SCHEMA_VALUES = 100_000
MAX_SCHEMA_CHARS = 2**18  # the grammar compiler's limit (engine/structured/grammar_compiler.py)
MAX_METADATA = 64
MAX_METADATA_CHARS = 2**16
MAX_ABORTED = 4096  # request ids in one abort request

# Pooling.
MAX_INPUTS = 4096
MAX_PAIR_CHARS = 2**25  # total, of all query-document pairs

# Integers without a limit of their own: the last part of their path, and what limits them.
BOUNDED_BY = {
    "budget_tokens": "the answer's length",
    "dimensions": "the model's own",
    "logprobs": "`--max-logprobs`",
    "max_completion_tokens": "the context",
    "max_output_tokens": "the context",
    "max_tokens": "the context",
    "max_tokens_per_doc": "the context",
    "max_tokens_per_query": "the context",
    "max_tool_calls": "it has no effect",
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


def most_text_bytes(max_model_len: int) -> int:
    """The limit for a text to be tokenized."""
    return max(MAX_TEXT_BYTES, TEXT_BYTES_PER_TOKEN * max_model_len)
