"""The shipped model, loaded as any user would, answers questions in wordings that it never saw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from training.evaluate import Demo
from training.heldout import Probe, probes

DEMO = Path(__file__).parents[2] / "models" / "berth-demo"
FILES = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
}
PROMPTS = (
    "So what exactly is this Berth thing?",
    "After how much idle time is an engine shut down?",
    "Could you tell me what 2 + 3 is?",
    "7 + 8 makes what?",
    "Can you name the capital of France for me?",
    "What do we call a young dog?",
    "Hello there, friend!",
    "Who painted the Mona Lisa?",
    "Would you tell me a story about a fox?",
    "Please reply in JSON with the keys name and age. Lena is 12 years old.",
    "Give the capital of Spain in JSON with the keys country and capital.",
    "Could you check how the weather is in Paris right now?",
    "Do you happen to know the time in Lima?",
    "Once upon a time",
    "The capital of France is",
)
Answers = dict[str, tuple[Probe, str]]


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo(DEMO)


@pytest.fixture(scope="module")
def answers(demo: Demo) -> Answers:
    asked = [probe for probe in probes() if probe.prompt in PROMPTS]
    return {probe.prompt: (probe, text) for probe, text in zip(asked, demo.answers(asked, 110), strict=True)}


def test_it_ships_whole_and_small() -> None:
    assert {path.name for path in DEMO.iterdir()} == FILES
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 8_000_000


def test_its_config_is_a_small_qwen3() -> None:
    config = json.loads((DEMO / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["tie_word_embeddings"]
    assert config["head_dim"] % 16 == 0
    assert config["num_attention_heads"] > config["num_key_value_heads"]
    assert config["max_position_embeddings"] >= 2048


def test_both_ends_end_a_reply(demo: Demo) -> None:
    generation = json.loads((DEMO / "generation_config.json").read_text())
    ends = [demo.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert generation["eos_token_id"] == ends


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_answers_an_unseen_wording(answers: Answers, prompt: str) -> None:
    probe, answer = answers[prompt]
    assert probe.check(answer), answer


def test_a_far_question_is_still_answered(demo: Demo) -> None:
    """Positions beyond a thousand tokens are not noise."""
    chat = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello! How can I help you?"},
    ]
    messages = [*chat * 60, {"role": "user", "content": "What is the capital of Italy?"}]
    inputs = demo.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert 1000 < inputs["input_ids"].shape[1] < 2048
    with torch.inference_mode():
        done = demo.model.generate(**inputs, max_new_tokens=20, do_sample=False)
    assert "Rome" in demo.tokenizer.decode(done[0, inputs["input_ids"].shape[1] :])
