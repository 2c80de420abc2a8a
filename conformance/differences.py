"""Intended differences from vLLM and their reasons, each with the cases that vLLM fails because of it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Difference:
    ours: str
    theirs: str
    reason: str
    cases: tuple[str, ...]  # glob patterns, in which [ and ] are literal

    def covers(self, name: str) -> bool:
        return any(matches(name, pattern) for pattern in self.cases)


def matches(name: str, pattern: str) -> bool:
    return fnmatchcase(_plain(name), _plain(pattern))


def _plain(name: str) -> str:
    return name.replace("[", "(").replace("]", ")")


VLLM: tuple[Difference, ...] = (
    Difference(
        "Every error uses OpenAI's envelope",
        '`{"detail": …}` for unknown paths, wrong methods and bodies that are not JSON',
        "clients need to handle only one error format",
        (
            "models/an-unknown-model-is-404",
            "errors/an-unknown-path-is-404[*",
            "errors/a-wrong-method-is-405[*",
            "errors/models-cannot-be-posted",
            "errors/a-wrong-body-is-400[*",
        ),
    ),
    Difference(
        "An error's `param` is the field's path in the request: `messages[1].content`",
        "null, or a location that contains class names",
        "clients can identify the field without parsing the message",
        (
            "errors/a-completions-error-names[*",
            "errors/a-chats-error-names[*",
            "structured/names-the-refused-field-in-a-chat[*",
            "pooling/names-the-refused-field[*",
            "pooling/fewer-dimensions-work-or-are-refused",
        ),
    ),
    Difference(
        "`max_tokens` of a chat may exceed the context; the output is limited to what fits",
        "400",
        "agents request 32000 tokens without knowing the context length",
        ("chat/a-limit-beyond-the-context-is-a-cap[*", "messages/max-tokens-beyond-the-context-are-a-cap"),
    ),
    Difference(
        "A prompt that does not fit is refused with the wording that clients look for, and a code",
        "the wording varies by release and route, and there is no code",
        "agents that read `prompt is too long` or `context_length_exceeded` shorten the conversation",
        (
            "chat/a-conversation-longer-than-the-context-is-400",
            "messages/a-conversation-longer-than-the-context-is-400",
        ),
    ),
    Difference(
        "An unknown field is ignored and named in the `Warning` header",
        "ignored",
        "a misspelt field should be noticed",
        ("errors/an-unknown-field-is-named-in-a-warning[*",),
    ),
    Difference(
        "`best_of` above 1, `modalities` and `audio` are refused",
        "ignored",
        "silently ignoring them would be misleading",
        (
            "errors/a-completion*[best-of]",
            "errors/a-chat-is-refused[modalities]",
            "errors/a-chat-is-refused[audio]",
        ),
    ),
    Difference(
        "400 for a role that OpenAI does not define",
        "any role is passed to the template",
        "most templates drop messages with a misspelt role",
        ("chat/refuses-the-role[unknown-role]", "errors/a-chat-is-refused[a-message-has-a-wrong-role]"),
    ),
    Difference(
        "400 for a user's message without content",
        "accepted as an empty message",
        "only an assistant's message with tool calls or reasoning may lack content",
        ("errors/a-chat-is-refused[a-users-message-has-no-content]",),
    ),
    Difference(
        "415 for a body whose media type is not JSON",
        "400",
        "HTTP defines a status for it",
        ("errors/another-media-type-is-415[*",),
    ),
    Difference(
        "`/v1/models/{id}` and `DELETE /v1/responses/{id}`",
        "404 and 405",
        "OpenAI's API has the routes",
        ("models/one-model-by-name", "responses/one-may-be-deleted"),
    ),
    Difference(
        "400 for a token id outside the vocabulary, in /detokenize",
        "an empty text",
        "it is a client error",
        ("tokenize/refuses[token-is-outside-the-vocabulary]",),
    ),
    Difference(
        "`n` above 1 with temperature 0 returns equal choices",
        "400",
        "OpenAI accepts it, and its meaning is clear",
        ("completions/n-choices-are-equal-when-greedy", "stops/each-of-n-choices-stops-for-itself"),
    ),
    Difference(
        "`echo` with `max_tokens: 0` generates nothing and counts nothing",
        "one token is generated, hidden and counted",
        "users should not pay for tokens that they did not request",
        ("completions/echo-alone-generates-nothing",),
    ),
    Difference(
        "Streams have the header `X-Accel-Buffering: no`",
        "no such header",
        "a proxy that buffers would delay the whole stream",
        ("streams/proxies-must-not-buffer",),
    ),
    Difference(
        "White space between JSON tokens is limited",
        "unlimited: a model can use up its token limit with it",
        "the output must end",
        (
            "structured/a-chat-follows-the-schema[*",
            "structured/wide-sampling-follows-the-schema[*",
            "structured/strict-is-accepted",
            "structured/a-completion-follows[json]",
            "responses/a-response-follows-a-schema",
        ),
    ),
    Difference(
        "Required and named calls follow the tool's schema",
        "only with `strict`; otherwise they are any JSON, which may never end",
        "a client that forces a call needs valid arguments",
        (
            "tools/a-call-follows-its-schema*",
            "tools/a-streamed-call-is-the-same-as-whole[*",
            "tools/a-required-call-ends-with-tool-calls",
            "tools/a-named-call-is-of-that-name",
            "tools/not-in-parallel-is-one-call",
            "tools/a-tool-without-parameters",
            "tools/calls-may-be-sent-back-as-they-came",
            "tools/each-of-n-choices-has-its-calls",
            "responses/a-tool-is-called",
            "messages/a-tool-is-used[*",
            "messages/a-streamed-tool-use-assembles",
        ),
    ),
    Difference(
        "Errors of /v1/messages use Anthropic's envelope and types",
        "OpenAI's envelope, or types of its own",
        "Anthropic's clients expect that",
        ("messages/refuses[*", "messages/an-unknown-model-is-404"),
    ),
)

_BY_OWNER: dict[str, tuple[Difference, ...]] = {"vllm": VLLM}


def intended_differences(owner: str) -> tuple[Difference, ...]:
    """The differences of a server whose models are `owned_by` this owner."""
    return _BY_OWNER.get(owner, ())
