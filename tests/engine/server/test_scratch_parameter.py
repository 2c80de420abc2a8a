"""A new sampling parameter takes a line in SamplingParams, one in SamplingFields, and what applies it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ENGINE = Path(__file__).resolve().parents[3] / "engine"

# In every protocol's body → what reaches the sampler.
SCRIPT = """
import json
from engine.server.generation.sampling_params import TokenConstraints, make_sampling_params
from engine.server.messages.bodies import COUNT_RULES, CountBody, MessagesBody
from engine.server.messages.translate import ReasoningSupport, to_chat
from engine.server.openai.responses.bodies import ResponsesBody
from engine.server.openai.responses.translate import ConversationRequest
from engine.server.model.served_model import _DEFAULTS
from engine.server.protocol.body_reader import check
from engine.server.protocol.chat_body import ChatBody
from engine.server.protocol.completion_body import CompletionBody

MESSAGES = [{"role": "user", "content": "Hi"}]
NO_CONSTRAINTS = TokenConstraints({}, None, ())


def params_of(body, **defaults):
    return make_sampling_params(
        body, defaults, NO_CONSTRAINTS, max_tokens=9, seed=0, prompt_logprobs=None
    )


def bodies(**fields):
    yield check({"prompt": "Hi", **fields}, CompletionBody)
    yield check({"messages": MESSAGES, **fields}, ChatBody)
    yield ConversationRequest(check({"input": "Hi", **fields}, ResponsesBody), None).chat()
    yield to_chat(check({"messages": MESSAGES, "max_tokens": 9, **fields}, MessagesBody), ReasoningSupport())


def refusal(**fields):
    try:
        check({"prompt": "Hi", "use_beam_search": True, "n": 2, **fields}, CompletionBody)
    except Exception as error:
        return error.param


check({"messages": MESSAGES, "scratch": 2}, CountBody, COUNT_RULES)
print(json.dumps({
    "given": [params_of(body).scratch for body in bodies(scratch=2)],
    "neutral": [params_of(body).scratch for body in bodies()],
    "checkpoint's": [params_of(body, scratch=3).scratch for body in bodies()],
    "defaults": "scratch" in _DEFAULTS,
    "with beams": refusal(scratch=2),
}))
"""


def insert(path: Path, before: str, line: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, f"{line}\n{before}", 1), encoding="utf-8")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the engine with a further parameter does with it."""
    root = tmp_path_factory.mktemp("scratch")
    shutil.copytree(ENGINE, root / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    insert(root / "engine/core/types.py", "    seed: int = 0\n", "    scratch: float = 0.5")
    insert(
        root / "engine/server/protocol/sampling_fields.py",
        "    seed: Annotated",
        "    scratch: Annotated[float | None, FROM_CHECKPOINT] = Field(default=None, ge=0)",
    )
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


def test_every_body_has_it_and_the_sampler_gets_it(found: dict[str, Any]) -> None:
    assert found["given"] == [2.0] * 4


def test_without_a_value_it_is_the_checkpoints_or_neutral(found: dict[str, Any]) -> None:
    assert found["neutral"] == [0.5] * 4
    assert (found["checkpoint's"], found["defaults"]) == ([3.0] * 4, True)


def test_beam_search_refuses_what_it_does_not_apply(found: dict[str, Any]) -> None:
    assert found["with beams"] == "scratch"
