"""What one request may carry: every bound, in one place. docs/limits.md is written from here.

A limit counts what a body holds before anything is made of it (size_limits.py). SizeLimits are meant to be
far above what clients send (agents with 500 messages, 100 tools of 10 KB, prompts of 200,000 tokens), and
low enough that a request at every one of them delays nobody else noticeably. A test finds any field of a body
that holds a list, a string or an object and stands under none of them.
"""

from __future__ import annotations

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


def most_text_bytes(max_model_len: int) -> int:
    """Of a text that is to become tokens."""
    return max(MAX_TEXT_BYTES, TEXT_BYTES_PER_TOKEN * max_model_len)
