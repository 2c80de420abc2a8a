"""Renders a conversation to a prompt with the checkpoint's Jinja template, as Hugging Face does.

Templates come with checkpoints and are not trusted: they run in Jinja's sandbox and get plain JSON values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import ConfigError, InvalidRequest
from engine.server.http.large_work import GilThrottle
from engine.server.model.simplified_turns import simplifications
from engine.server.protocol.json_budget import find_json_excess

Message = Mapping[str, Any]

# Variables set by the renderer; a request's chat_template_kwargs cannot override them.
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class TemplateRejects(InvalidRequest):
    """The template rejects the conversation, at least in this form."""


class ChatTemplate:
    """One checkpoint's templates: "default", and optionally "tool_use" for requests with tools."""

    def __init__(
        self,
        sources: Mapping[str, str],
        *,
        special_tokens: Mapping[str, str],
        content_format: str = "auto",
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """`content_format`: the content type the templates expect, "string" or "openai" (a list of parts);
        "auto" detects it.

        Raises ConfigError for a template that is not valid Jinja.
        """
        environment = _environment()
        self._special_tokens = dict(special_tokens)
        self._defaults = dict(defaults or {})
        self._content_format = content_format
        self._takes_developer = any("developer" in source for source in sources.values())
        try:
            self._templates = {name: environment.from_string(source) for name, source in sources.items()}
        except TemplateError as error:
            raise ConfigError(f"The chat template is not valid Jinja: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. Raises InvalidRequest if the template rejects the conversation.

        `continue_final_message`: the prompt ends with the last message's text, which the model continues.
        """
        reserved = _RESERVED.intersection(variables or {})
        if reserved:
            raise InvalidRequest(
                f"chat_template_kwargs can't set {', '.join(sorted(reserved))}: the server sets these.",
                param="chat_template_kwargs",
            )
        throttle = GilThrottle()
        given = [self._adapt(message, throttle) for message in messages]
        known = {**self._defaults, **(variables or {})}

        def render(turns: list[dict[str, Any]]) -> str:
            return self._render(turns, tools, documents, add_generation_prompt, known)

        text = _render_accepted_form(render, given)
        return _text_until_content_end(text, given[-1].get("content")) if continue_final_message else text

    def replaced(self, source: str) -> ChatTemplate:
        """A copy with `source` as its template. Raises ConfigError."""
        return ChatTemplate(
            {"default": source},
            special_tokens=self._special_tokens,
            content_format=self._content_format,
            defaults=self._defaults,
        )

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        documents: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        template = self._templates.get(name)
        if template is None:
            raise InvalidRequest(
                "This model has no chat template: start the engine with --chat-template, or use "
                "/v1/completions."
            )
        known = {**self._special_tokens, **variables, "documents": documents}
        try:
            return template.render(
                messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, **known
            )
        except Exception as error:  # a template is a program and can raise anything
            raise TemplateRejects(
                f"messages: the model's chat template rejects this conversation: {error}", param="messages"
            ) from error

    def _adapt(self, message: Message, throttle: GilThrottle) -> dict[str, Any]:
        adapted = {key: value for key, value in message.items() if value not in (None, [])}
        as_text = message["role"] == "tool"  # most templates accept parts only in messages of other roles
        adapted["content"] = self._adapt_content(message.get("content"), as_text=as_text)
        reasoning = adapted.get("reasoning") or adapted.get("reasoning_content")
        if reasoning is not None:  # templates use either name
            adapted["reasoning"] = adapted["reasoning_content"] = reasoning
        if adapted["role"] == "developer" and not self._takes_developer:
            adapted["role"] = "system"  # the role's older name; templates drop unknown roles
        if "tool_calls" in adapted:
            adapted["tool_calls"] = [_with_parsed_arguments(call, throttle) for call in adapted["tool_calls"]]
        return adapted

    def _adapt_content(self, content: Any, *, as_text: bool) -> Any:
        if content is None:
            return None
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if self._accepts_parts and not as_text:
            return parts
        return "\n".join(part["text"] for part in parts)

    @cached_property
    def _accepts_parts(self) -> bool:
        """Whether the template handles a list of content parts, detected by rendering one."""
        if self._content_format != "auto":
            return self._content_format == "openai"
        probe = "berth-probe"
        message = {"role": "user", "content": [{"type": "text", "text": probe}]}
        try:
            rendered = self._render([message], None, None, True, self._defaults)
        except InvalidRequest:
            return False
        return probe in rendered and "'type'" not in rendered and '"type"' not in rendered


def _render_accepted_form(render: Callable[[list[dict[str, Any]]], str], turns: list[dict[str, Any]]) -> str:
    """Render the conversation as is, or else its least simplified form that the template accepts.

    Raises TemplateRejects.
    """
    try:
        return render(turns)
    except TemplateRejects:
        for simplified in simplifications(turns):
            with suppress(TemplateRejects):
                return render(simplified)
        raise


def _text_until_content_end(text: str, content: Any) -> str:
    """The rendered text up to the end of the last message's content, which templates may trim."""
    content_text = content if isinstance(content, str) else "".join(part["text"] for part in content or [])
    at = text.rfind(content_text.strip())
    if not content_text.strip() or at < 0:
        raise InvalidRequest(
            "continue_final_message: not possible, since the chat template changes the last message's text.",
            param="continue_final_message",
        )
    return text[:at] + (
        content_text.lstrip() if text[at:].startswith(content_text.lstrip()) else content_text.strip()
    )


def _with_parsed_arguments(call: Mapping[str, Any], throttle: GilThrottle) -> dict[str, Any]:
    """Clients send a call's arguments as JSON text; templates expect the object.

    Text that is not JSON stays text, since a truncated call must not make its conversation unusable. So does
    JSON that exceeds the limits of a body.
    """
    function = dict(call["function"])
    arguments = function.get("arguments")
    throttle.pause()
    if isinstance(arguments, str) and find_json_excess(arguments.encode(errors="replace")) is None:
        with suppress(ValueError, RecursionError):
            function["arguments"] = json.loads(arguments) if arguments else {}
    return {**call, "function": function}


class _Generation(Extension):
    """`{% generation %}` marks assistant output for training; here its body is rendered as text."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which models were not trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
