"""Where we mean to differ from vLLM, and why: each a pattern of case names that vLLM doesn't pass."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Difference:
    cases: str  # a pattern as of file names; [ and ] stand for themselves
    ours: str
    theirs: str
    reason: str

    def covers(self, name: str) -> bool:
        return fnmatchcase(_plain(name), _plain(self.cases))


def _plain(name: str) -> str:
    return name.replace("[", "(").replace("]", ")")


_ENVELOPE = "clients read one shape of error; a body that isn't it can't be handled"
_PARAM = "a client can point at the field without reading the message"

VLLM: tuple[Difference, ...] = (
    Difference(
        "models/one-model-by-name",
        "`/v1/models/{id}` answers with the card",
        "404",
        "OpenAI's API has the route",
    ),
    Difference("models/an-unknown-model-is-404", "OpenAI's error envelope", '`{"detail": …}`', _ENVELOPE),
    Difference(
        "tokenize/refuses[token-is-outside-the-vocabulary]",
        "400",
        "an empty text",
        "a token that doesn't exist is a mistake of the caller's",
    ),
    Difference(
        "completions/n-choices-are-equal-when-greedy",
        "`n` > 1 with temperature 0 gives equal choices",
        "400",
        "OpenAI takes it, and nothing is ambiguous",
    ),
    Difference(
        "stops/each-of-n-choices-stops-for-itself",
        "`n` > 1 with temperature 0 gives equal choices",
        "400",
        "as above",
    ),
    Difference(
        "completions/echo-alone-generates-nothing",
        "`echo` with `max_tokens: 0` generates nothing and counts nothing",
        "one token is generated, hidden and counted",
        "nobody pays for what wasn't asked for",
    ),
    Difference(
        "chat/refuses-the-role[unknown-role]",
        "400 for a role that isn't OpenAI's",
        "any role is handed to the template",
        "a misspelt role would vanish in most templates",
    ),
    Difference(
        "streams/proxies-are-told-not-to-buffer",
        "`X-Accel-Buffering: no` on streams",
        "no such header",
        "a proxy that buffers turns a stream into a wait",
    ),
    Difference(
        "errors/a-completion*[best-of]",
        "`best_of` above 1 is refused",
        "ignored",
        "accepted and ignored is a lie",
    ),
    Difference(
        "errors/a-completion*[beam-search]",
        "`use_beam_search` is refused",
        "ignored",
        "accepted and ignored is a lie",
    ),
    Difference(
        "errors/a-c*[unknown-field]",
        "an unknown field is refused by name",
        "ignored",
        "a misspelt field must not go unnoticed",
    ),
    Difference(
        "errors/a-completions-error-names[*",
        "`param` is the field as the client wrote it",
        "null, or pydantic's location (`body.prompt.0`)",
        _PARAM,
    ),
    Difference(
        "errors/a-chats-error-names[*",
        "`param` is the field as the client wrote it",
        "null, or pydantic's location with names of classes",
        _PARAM,
    ),
    Difference(
        "errors/a-chat-is-refused[a-message-has-a-wrong-role]",
        "400 for a role that isn't OpenAI's",
        "any role is handed to the template",
        "a misspelt role would vanish in most templates",
    ),
    Difference(
        "errors/a-chat-is-refused[a-users-message-has-no-content]",
        "400",
        "an empty message",
        "only an assistant's message may lack content, when it calls tools",
    ),
    *(
        Difference(
            f"errors/a-chat-is-refused[{name}]", "refused by name", "ignored", "accepted and ignored is a lie"
        )
        for name in ("modalities", "audio", "web-search")
    ),
    *(
        Difference(f"errors/{name}", "OpenAI's error envelope", '`{"detail": …}`', _ENVELOPE)
        for name in (
            "an-unknown-path-is-404[*",
            "a-wrong-method-is-405[*",
            "models-cannot-be-posted",
            "a-wrong-body-is-400[*",
        )
    ),
    Difference(
        "errors/another-media-type-is-415[*",
        "415",
        "400",
        "HTTP has a status for it",
    ),
    Difference(
        "structured/a-chat-follows-the-schema[*",
        "white space between JSON's tokens is bounded",
        "unbounded, so that a model may fill its limit with it",
        "an answer must come to its end",
    ),
    Difference("structured/strict-is-taken", "bounded white space", "unbounded", "as above"),
    Difference("structured/a-completion-follows[json]", "bounded white space", "unbounded", "as above"),
    Difference(
        "structured/names-what-it-refuses-in-a-chat[*", "`param` is the field", "null or a location", _PARAM
    ),
    *(
        Difference(
            f"tools/{name}",
            "calls that were required or named follow the tool's schema",
            "only with `strict`; otherwise any JSON, which may never end",
            "a caller that demands a call means one that can be made",
        )
        for name in (
            "a-call-follows-its-schema*",
            "a-streamed-call-is-the-same-as-whole[*",
            "a-required-call-ends-with-tool-calls",
            "a-named-call-is-of-that-name",
            "not-in-parallel-is-one-call",
            "a-tool-without-parameters",
            "calls-may-be-sent-back-as-they-came",
            "each-of-n-choices-has-its-calls",
        )
    ),
    *(
        Difference(
            f"{name}",
            "required calls and schemas hold without `strict`, with bounded white space",
            "only with `strict`, unbounded",
            "as for chats",
        )
        for name in (
            "responses/a-tool-is-called",
            "responses/a-response-follows-a-schema",
            "messages/a-tool-is-used[*",
            "messages/a-streamed-tool-use-assembles",
        )
    ),
    Difference(
        "responses/one-may-be-deleted", "`DELETE /v1/responses/{id}`", "405", "OpenAI's API has the route"
    ),
    Difference("responses/refuses[unknown-field]", "an unknown field is refused", "ignored", "as for chats"),
    Difference(
        "messages/refuses[*",
        "Anthropic's error envelope and types",
        "OpenAI's, or vLLM's names of types",
        "the anthropic client reads its own envelope",
    ),
    Difference("messages/an-unknown-model-is-404", "type `not_found_error`", "`NotFoundError`", "as above"),
)

_BY_OWNER: dict[str, tuple[Difference, ...]] = {"vllm": VLLM}


def intended_differences(owner: str) -> tuple[Difference, ...]:
    """Those of a server whose models are `owned_by` this owner."""
    return _BY_OWNER.get(owner, ())
