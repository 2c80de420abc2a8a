"""Templates render as with Hugging Face; a rejected conversation is a client error."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

import pytest

from engine.errors import ConfigError, InvalidRequest
from engine.server.model.chat_template import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "description": "<ä> & 'b'", "parameters": {"type": "object"}},
    }
]
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What's 1 < 2?"},
    {"role": "assistant", "content": "true"},
    {"role": "user", "content": "  And now?\n"},
]

# Features of real templates: white-space control, loop control, state, tool dumps, errors, generation blocks.
TEMPLATES = {
    "whitespace": (
        "{{ bos_token }}\n"
        "  {% for message in messages %}\n"
        "    {%- if message.role == 'user' -%}\n[U] {{ message['content'] | trim }}\n"
        "    {%- else %}\n[{{ message.role }}] {{ message.content }}\n    {% endif %}\n"
        "  {% endfor %}\n"
        "{% if add_generation_prompt %}[A]{% endif %}\n"
    ),
    "tools": (
        "{%- if tools %}{{ tools | tojson(indent=2) }}"
        "{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
        "{{ messages[0].content }}{{ eos_token }}"
    ),
    "state": (
        "{% set ns = namespace(n=0, last=none) %}"
        "{% for message in messages %}{% if loop.index0 == 2 %}{% continue %}{% endif %}"
        "{% if ns.n > 1 %}{% break %}{% endif %}"
        "{% set ns.n = ns.n + 1 %}{% set ns.last = message.content[:4] %}{{ ns.n }}{{ ns.last }}{% endfor %}"
    ),
    "generation": (
        "{% for message in messages %}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ message.content }}{% endif %}{% endfor %}"
    ),
    "variables": "{{ enable_thinking is defined and not enable_thinking }}{{ strftime_now('%Y') }}{{ x }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompted", [True, False])
def test_as_hugging_face_renders(name: str, tools: Any, prompted: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    variables: dict[str, Any] = {"enable_thinking": False, "x": "y"}
    special: dict[str, Any] = {**SPECIAL}
    rendered_by_it = render_jinja_template(
        [TURNS],
        tools=tools,
        chat_template=TEMPLATES[name],
        add_generation_prompt=prompted,
        **special,
        **variables,
    )
    [expected], _ = cast("tuple[list[str], object]", rendered_by_it)  # annotated as a str
    template = ChatTemplate({"default": TEMPLATES[name]}, special_tokens=SPECIAL, content_format="string")
    rendered = template.render(TURNS, tools=tools, add_generation_prompt=prompted, variables=variables)
    assert rendered == expected


def template_of(source: str, **options: Any) -> ChatTemplate:
    return ChatTemplate({"default": source}, special_tokens=SPECIAL, **options)


def test_a_refusal_is_the_clients_error() -> None:
    template = template_of("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        template.render(TURNS)
    assert caught.value.param == "messages"


ONE_SYSTEM_TURN = (
    "{% for message in messages %}"
    "{% if message.role == 'system' and not loop.first %}{{ raise_exception('system first') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}{% endfor %}"
)


def test_a_template_for_one_system_turn_gets_one() -> None:
    """Agents send several, also later; a template that accepts them gets them unchanged."""
    turns = [
        {"role": "system", "content": "A."},
        {"role": "developer", "content": "B."},
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "C."},
    ]
    refusing = ChatTemplate({"default": ONE_SYSTEM_TURN}, special_tokens=SPECIAL)
    assert refusing.render(turns) == ("<system>A.\n\nB.<user>Hi\n<system-reminder>\nC.\n</system-reminder>")
    taking = ONE_SYSTEM_TURN.replace("system first", "").replace("not loop.first", "false")
    template = ChatTemplate({"default": taking}, special_tokens=SPECIAL)
    assert template.render(turns) == "<system>A.<system>B.<user>Hi<system>C."


def test_a_template_that_fails_is_the_clients_error() -> None:
    with pytest.raises(InvalidRequest, match="rejects"):
        template_of("{{ messages[9].content.upper() }}").render(TURNS)


@pytest.mark.parametrize(
    "source",
    ["{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}"],
)
def test_a_template_is_sandboxed(source: str) -> None:
    turns = [dict(turn) for turn in TURNS]
    with suppress(InvalidRequest):
        assert "function" not in template_of(source).render(turns)
    assert turns == TURNS


def test_a_missing_template_is_reported() -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        ChatTemplate({}, special_tokens={}).render(TURNS)


def test_an_invalid_template_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="not valid Jinja"):
        template_of("{% for %}")


def test_requests_with_tools_use_the_tool_template_if_there_is_one() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "with tools"}, special_tokens={})
    assert template.render(TURNS) == "plain"
    assert template.render(TURNS, tools=TOOLS) == "with tools"


PARTS: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
]
TAKES_STRINGS = "{% for m in messages %}{{ m.content }}|{% endfor %}"
TAKES_PARTS = "{% for m in messages %}{% for part in m.content %}{{ part.text }}+{% endfor %}|{% endfor %}"
TAKES_BOTH = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}+{% endfor %}{% endif %}|{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "content_format", "expected"),
    [
        (TAKES_STRINGS, "auto", "a\nb|"),
        (TAKES_PARTS, "auto", "a+b+|"),
        (TAKES_BOTH, "auto", "a+b+|"),
        (TAKES_BOTH, "string", "a\nb|"),
        (TAKES_PARTS, "openai", "a+b+|"),
    ],
)
def test_content_has_the_format_that_the_template_expects(
    source: str, content_format: str, expected: str
) -> None:
    assert template_of(source, content_format=content_format).render(PARTS) == expected


def test_arguments_of_tool_calls_are_objects() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}]}
    ]
    template = template_of("{{ messages[0].tool_calls[0].function.arguments | tojson }}")
    assert template.render(turns) == '{"x": 1}'
    turns[0]["tool_calls"][0]["function"]["arguments"] = '{"x'  # truncated: unchanged
    assert template.render(turns) == '"{\\"x"'


def test_reasoning_has_both_field_names() -> None:
    for name, other in (("reasoning", "reasoning_content"), ("reasoning_content", "reasoning")):
        turns = [{"role": "assistant", "content": "x", name: "hm"}]
        assert template_of(f"{{{{ messages[0].{other} }}}}").render(turns) == "hm"


def test_tool_results_are_text_even_if_other_content_is_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    source = "{% for part in messages[0].content %}{{ part.text }}{% endfor %}"
    source += "{{ messages[-1].content if messages[-1].role == 'tool' }}"
    turns = [{"role": "user", "content": parts}, {"role": "tool", "content": parts}]
    assert template_of(source).render(turns) == "aba\nb"


def test_an_empty_list_of_calls_is_omitted() -> None:
    turns = [{"role": "assistant", "content": "x", "tool_calls": []}]
    assert template_of("{{ 'tool_calls' in messages[0] }}").render(turns) == "False"


def test_developer_becomes_system_if_the_template_lacks_the_role() -> None:
    turns = [{"role": "developer", "content": "x"}]
    assert template_of("{{ messages[0].role }}").render(turns) == "system"
    assert template_of("{# developer #}{{ messages[0].role }}").render(turns) == "developer"


def test_variables_of_the_server_and_of_the_request() -> None:
    template = template_of("{{ a }}{{ b }}", defaults={"a": 1, "b": 2})
    assert template.render(TURNS) == "12"
    assert template.render(TURNS, variables={"b": 3}) == "13"
    with pytest.raises(InvalidRequest) as caught:
        template.render(TURNS, variables={"tools": []})
    assert caught.value.param == "chat_template_kwargs"
