"""Where we mean to differ from vLLM, and why; each with the cases that vLLM therefore doesn't pass."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Difference:
    ours: str
    theirs: str
    reason: str
    cases: tuple[str, ...]  # patterns as of file names; [ and ] stand for themselves

    def covers(self, name: str) -> bool:
        return any(matches(name, pattern) for pattern in self.cases)


def matches(name: str, pattern: str) -> bool:
    return fnmatchcase(_plain(name), _plain(pattern))


def _plain(name: str) -> str:
    return name.replace("[", "(").replace("]", ")")


VLLM: tuple[Difference, ...] = (
    Difference(
        "Every error is OpenAI's envelope",
        '`{"detail": …}` for unknown paths, wrong methods and bodies that are no JSON',
        "clients read one shape of error",
        (
            "models/an-unknown-model-is-404",
            "errors/an-unknown-path-is-404[*",
            "errors/a-wrong-method-is-405[*",
            "errors/models-cannot-be-posted",
            "errors/a-wrong-body-is-400[*",
        ),
    ),
    Difference(
        "An error's `param` is the field as the client wrote it: `messages[1].content`",
        "null, or a location with names of classes in it",
        "a client can point at the field without reading the message",
        (
            "errors/a-completions-error-names[*",
            "errors/a-chats-error-names[*",
            "structured/names-what-it-refuses-in-a-chat[*",
            "pooling/names-what-it-refuses[*",
            "pooling/fewer-dimensions-or-a-clear-no",
        ),
    ),
    Difference(
        "`max_tokens` of a chat beyond the context is a cap: what fits is what you get",
        "400",
        "agents ask for 32000 tokens without knowing the context",
        ("chat/a-limit-beyond-the-context-is-a-cap[*", "messages/max-tokens-beyond-the-context-are-a-cap"),
    ),
    Difference(
        "A prompt that doesn't fit is refused in the words that clients look for, with a code",
        "other words by release and by route, and no code",
        "agents that read `prompt is too long` or `context_length_exceeded` shorten the conversation",
        (
            "chat/a-conversation-longer-than-the-context-is-400",
            "messages/a-conversation-longer-than-the-context-is-400",
        ),
    ),
    Difference(
        "An unknown field is ignored and named in the header `Warning`",
        "ignored",
        "a misspelt field must not go unnoticed",
        ("errors/an-unknown-field-is-named-in-a-warning[*",),
    ),
    Difference(
        "`best_of` above 1, `modalities` and `audio` are refused",
        "ignored",
        "accepted and ignored is a lie",
        (
            "errors/a-completion*[best-of]",
            "errors/a-chat-is-refused[modalities]",
            "errors/a-chat-is-refused[audio]",
        ),
    ),
    Difference(
        "400 for a role that isn't OpenAI's",
        "any role is handed to the template",
        "a misspelt role would vanish in most templates",
        ("chat/refuses-the-role[unknown-role]", "errors/a-chat-is-refused[a-message-has-a-wrong-role]"),
    ),
    Difference(
        "400 for a user's message without content",
        "taken as an empty one",
        "only an assistant's message may lack it, when it calls tools or thinks",
        ("errors/a-chat-is-refused[a-users-message-has-no-content]",),
    ),
    Difference(
        "415 for a body that isn't said to be JSON",
        "400",
        "HTTP has a status for it",
        ("errors/another-media-type-is-415[*",),
    ),
    Difference(
        "`/v1/models/{id}` and `DELETE /v1/responses/{id}`",
        "404 and 405",
        "OpenAI's API has the routes",
        ("models/one-model-by-name", "responses/one-may-be-deleted"),
    ),
    Difference(
        "400 for a token id that the model doesn't have, in /detokenize",
        "an empty text",
        "it is a mistake of the caller's",
        ("tokenize/refuses[token-is-outside-the-vocabulary]",),
    ),
    Difference(
        "`n` above 1 with temperature 0 gives equal choices",
        "400",
        "OpenAI takes it, and nothing about it is ambiguous",
        ("completions/n-choices-are-equal-when-greedy", "stops/each-of-n-choices-stops-for-itself"),
    ),
    Difference(
        "`echo` with `max_tokens: 0` generates nothing and counts nothing",
        "one token is generated, hidden and counted",
        "nobody pays for what wasn't asked for",
        ("completions/echo-alone-generates-nothing",),
    ),
    Difference(
        "Streams carry `X-Accel-Buffering: no`",
        "they don't",
        "a proxy that buffers turns a stream into a wait",
        ("streams/proxies-are-told-not-to-buffer",),
    ),
    Difference(
        "White space between JSON's tokens is bounded",
        "unbounded: a model may fill its limit with it",
        "an answer must come to its end",
        (
            "structured/a-chat-follows-the-schema[*",
            "structured/wide-sampling-follows-the-schema[*",
            "structured/strict-is-taken",
            "structured/a-completion-follows[json]",
            "responses/a-response-follows-a-schema",
        ),
    ),
    Difference(
        "Calls that were required or named follow the tool's schema",
        "only with `strict`; otherwise they are any JSON, which may never end",
        "a caller that demands a call means one that can be made",
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
        "/v1/messages answers errors in Anthropic's envelope, with its types",
        "in OpenAI's, or with names of its own",
        "Anthropic's clients read that",
        ("messages/refuses[*", "messages/an-unknown-model-is-404"),
    ),
)

_BY_OWNER: dict[str, tuple[Difference, ...]] = {"vllm": VLLM}


def intended_differences(owner: str) -> tuple[Difference, ...]:
    """Those of a server whose models are `owned_by` this owner."""
    return _BY_OWNER.get(owner, ())
