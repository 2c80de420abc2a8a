"""Templates that reject a conversation get the same conversation in simplified turns."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from engine.server.model.chat_template import ChatTemplate, TemplateRejects
from engine.server.model.simplified_turns import simplifications

SAY = "<{{ m.role }}>{{ m.content or '' }}"
# Like Mistral's: users and assistants alternate, except for calls and results; ids have nine characters.
ALTERNATING = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('roles') }}{% endif %}"
    "{% if m.role not in ('tool', 'system') and not m.tool_calls %}"
    "{% if (m.role == 'user') != (ns.n % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{% endif %}"
    "{% for call in m.tool_calls or [] %}"
    "{% if not call.id or call.id|length != 9 %}{{ raise_exception('length 9') }}{% endif %}({{ call.id }})"
    "{% endfor %}"
    "{% if m.role == 'tool' %}"
    "{% if not m.tool_call_id or m.tool_call_id|length != 9 %}{{ raise_exception('length 9') }}{% endif %}"
    "[{{ m.tool_call_id }}]{% endif %}" + SAY + "{% endfor %}"
)
SINGLE_CALLS = (  # like Llama's
    "{% for m in messages %}"
    "{% if m.tool_calls and m.tool_calls|length != 1 %}{{ raise_exception('single calls') }}{% endif %}"
    "{% for call in m.tool_calls or [] %}({{ call.function.name }}){% endfor %}" + SAY + "{% endfor %}"
)
NO_SYSTEM = (  # like Gemma's
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + SAY + "{% endfor %}"
)
USER: dict[str, Any] = {"role": "user", "content": "Hi"}


def render(template: str, *turns: dict[str, Any]) -> str:
    return ChatTemplate({"default": template}, special_tokens={}).render(turns)


def calls(*names: str | None) -> dict[str, Any]:
    function = {"arguments": "{}"}
    made = [{"id": name, "type": "function", "function": {"name": name or "f", **function}} for name in names]
    return {"role": "assistant", "content": None, "tool_calls": made}


def result(name: str | None, content: str = "12") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "content": content}


@pytest.mark.parametrize("name", ["call_7f3a9c2e1b", "toolu_01A09q90qw90lq917835lq9", "a", None])
def test_a_call_and_its_result_have_one_short_id(name: str | None) -> None:
    said = render(ALTERNATING, USER, calls(name), result(name))
    found = re.fullmatch(r"<user>Hi\((\w{9})\)<assistant>\[(\w{9})\]<tool>12", said)
    assert found is not None, said
    assert found[1] == found[2]
    assert said == render(ALTERNATING, USER, calls(name), result(name))


def test_short_ids_are_kept() -> None:
    assert "(abcDEF123)<assistant>[abcDEF123]" in render(
        ALTERNATING, USER, calls("abcDEF123"), result("abcDEF123")
    )


def test_several_results_without_ids_answer_the_calls_in_order() -> None:
    said = render(ALTERNATING, USER, calls("first", None), result(None, "1"), result(None, "2"))
    assert re.findall(r"\((\w+)\)", said) == re.findall(r"\[(\w+)\]", said)


def test_turns_of_one_role_are_merged_if_roles_must_alternate() -> None:
    """Codex sends two user turns before the first answer."""
    turns = [{"role": "system", "content": "S"}, USER, {"role": "user", "content": "Go"}]
    assert render(ALTERNATING, *turns) == "<system>S<user>Hi\n\nGo"
    said = [calls("abcDEF123"), result("abcDEF123"), USER]
    assert render(ALTERNATING, USER, *said) == "<user>Hi(abcDEF123)<assistant>[abcDEF123]<tool>12\n\nHi"
    said = [{"role": "assistant", "content": "I look."}, calls("abcDEF123"), result("abcDEF123")]
    assert render(ALTERNATING, USER, *said, {"role": "assistant", "content": "Cold."}) == (
        "<user>Hi(abcDEF123)<assistant>I look.[abcDEF123]<tool>12<assistant>Cold."
    )


def test_user_text_after_an_answer_is_a_separate_turn() -> None:
    turns = [USER, calls("x"), result("x"), {"role": "assistant", "content": "Cold."}, USER]
    assert render(ALTERNATING, *turns).endswith("<tool>12<assistant>Cold.<user>Hi")


def test_calls_are_split_each_with_its_result() -> None:
    turns = [USER, calls("a", "b", "c"), result("b", "2"), result("a", "1"), result("x", "?"), USER]
    assert render(SINGLE_CALLS, *turns) == (
        "<user>Hi(a)<assistant><tool>1(b)<assistant><tool>2(c)<assistant><tool>?<user>Hi"
    )


def test_a_template_without_system_role_gets_it_in_the_user_turn() -> None:
    system = {"role": "system", "content": "S"}
    assert render(NO_SYSTEM, system, USER) == "<user>S\n\nHi"
    assert render(NO_SYSTEM, {"role": "developer", "content": "S"}, system, USER) == "<user>S\n\nS\n\nHi"
    assert render(NO_SYSTEM, system) == "<user>S"
    assert render(NO_SYSTEM, USER, system, USER).count("system-reminder") == 2


def test_a_template_without_tools_gets_calls_as_text() -> None:
    template = NO_SYSTEM.replace("m.role == 'system'", "m.role not in ('user', 'assistant')")
    turns = [USER, {**calls("f"), "content": "I look."}, result("f"), USER]
    assert render(template, *turns) == (
        "<user>Hi<assistant>I look.\nCall of the tool f: {}<user>Result of the tool: 12\n\nHi"
    )


def test_parts_stay_parts() -> None:
    template = NO_SYSTEM.replace("{{ m.content or '' }}", "{% for p in m.content %}{{ p.text }}{% endfor %}")
    parts = [{"type": "text", "text": "Hi"}]
    system = {"role": "system", "content": "S"}
    assert render(template, system, {"role": "user", "content": parts}) == "<user>SHi"
    template = template.replace("m.role == 'system'", "m.role not in ('user', 'assistant')")
    turns = [{"role": "user", "content": parts}, calls("f"), result("f"), USER]
    assert (
        render(template, *turns)
        == "<user>Hi<assistant>Call of the tool f: {}<user>Result of the tool: 12\n\nHi"
    )


def test_an_accepted_conversation_is_unchanged() -> None:
    """With the template of a model that supports everything."""
    turns = [{"role": "system", "content": "S"}, USER, USER, calls("a", "b"), result("a"), USER]
    taking = "{% for m in messages %}" + SAY + "{% endfor %}"
    assert render(taking, *turns) == "<system>S<user>Hi<user>Hi<assistant><tool>12<user>Hi"


def test_the_rejection_of_the_original_conversation_is_reported() -> None:
    with pytest.raises(TemplateRejects, match="never"):
        render("{{ raise_exception('never ' ~ messages|length) }}", USER, USER)


def test_the_time_is_linear_in_the_conversation_length() -> None:
    many = 20_000
    turns = [USER, *[{"role": "system", "content": "S"}] * many, calls(*[str(n) for n in range(many)])]
    turns += [*[result(str(n)) for n in range(many)], *[USER] * many]
    begun = time.monotonic()
    *_, last = simplifications(turns)
    assert len(last) == 1 + 2 * many
    assert time.monotonic() - begun < 10  # comparing each result with each call would take minutes
