"""Merging of parameters, and the flags made of them."""

from __future__ import annotations

import argparse
import json
import random
from typing import Any

import pytest

from instance_manager.backends.params import (
    MASK,
    check_params,
    is_secret,
    mask_command,
    mask_params,
    merge_params,
    to_flags,
)
from instance_manager.errors import InvalidSpec


def flags(**params: Any) -> list[str]:
    return to_flags(params, lambda name: name == "enable-prefix-caching")


def test_later_layers_win_and_none_removes() -> None:
    merged = merge_params({"a": 1, "b": 2, "c": 3}, {"b": 20, "c": None}, {"c": 30, "a": None})
    assert merged == {"b": 20, "c": 30}


def test_both_spellings_are_one_key() -> None:
    assert merge_params({"max_model_len": 1}, {"max-model-len": 2}) == {"max_model_len": 2}
    assert merge_params({"max_model_len": 1}, {"max-model-len": None}) == {}


def test_merging_leaves_its_layers_alone() -> None:
    layer = {"a": 1}
    merge_params(layer, {"a": None, "b": 2})
    assert layer == {"a": 1}


@pytest.mark.parametrize("seed", range(20))
def test_merging_is_associative_without_removals(seed: int) -> None:
    rng = random.Random(seed)
    layers = [{rng.choice("abcd"): rng.randrange(9) for _ in range(3)} for _ in range(4)]
    assert merge_params(*layers) == merge_params(merge_params(*layers[:2]), merge_params(*layers[2:]))


def test_each_kind_of_value_has_its_flag() -> None:
    assert flags(max_model_len=2048) == ["--max-model-len", "2048"]
    assert flags(gpu_memory_utilization=0.5) == ["--gpu-memory-utilization", "0.5"]
    assert flags(dtype="bfloat16") == ["--dtype", "bfloat16"]
    assert flags(enforce_eager=True) == ["--enforce-eager"]
    assert flags(enforce_eager=False) == []
    assert flags(enable_prefix_caching=False) == ["--no-enable-prefix-caching"]
    assert flags(served_model_name=["a", "b"]) == ["--served-model-name", "a", "b"]
    assert flags(lora_modules=[]) == []
    assert flags(limit={"image": 2, "ä": [1]}) == ["--limit", '{"image":2,"ä":[1]}']
    assert flags(lora_modules=[{"name": "x"}, True]) == ["--lora-modules", '{"name":"x"}', "true"]


def test_a_value_that_looks_like_a_flag_stays_a_value() -> None:
    assert flags(suffix="--port=1", offset=-3) == ["--suffix=--port=1", "--offset=-3"]


@pytest.mark.parametrize("seed", range(50))
def test_argparse_reads_back_what_was_meant(seed: int) -> None:
    rng = random.Random(seed)
    values: dict[str, Any] = {
        "text": "".join(rng.choice("ab -='\"{}$\\\n") for _ in range(8)),
        "number": rng.uniform(-5, 5),
        "flag": rng.random() < 0.5,
        "items": [rng.choice(["x", "y z", "é"]) for _ in range(rng.randrange(1, 4))],
        "data": {"k": rng.randrange(5), "s": "-"},
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("--text")
    parser.add_argument("--number", type=float)
    parser.add_argument("--flag", action=argparse.BooleanOptionalAction)
    parser.add_argument("--items", nargs="+")
    parser.add_argument("--data", type=json.loads)
    check_params(values, frozenset())
    assert vars(parser.parse_args(to_flags(values, lambda _: True))) == values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "x"),
        ("Port", 1),
        ("api-key", "x"),
        ("-x", 1),
        ("a b", 1),
        ("", 1),
        ("a=b", 1),
        ("size", float("nan")),
        ("size", float("inf")),
        ("text", "a\0b"),
        ("items", ["a", ["b"]]),
        ("items", [None]),
        ("items", ["--port", "1"]),
        ("data", {"x": object()}),
        ("data", {"x": float("nan")}),
        ("thing", object()),
    ],
)
def test_a_value_that_can_not_become_a_flag_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidSpec) as refusal:
        check_params({name: value}, frozenset({"model", "port", "api_key"}))
    assert refusal.value.param == f"params.{name}"


def test_none_and_plain_values_pass() -> None:
    check_params({"a": None, "b": 1, "c": 0.5, "d": True, "e": "x", "f": ["x", 1]}, frozenset())


def test_secrets_are_recognised_by_the_last_word() -> None:
    assert all(is_secret(name) for name in ("--api-key", "hf_token", "PASSWORD", "--token", "client-secret"))
    assert not any(is_secret(name) for name in ("--max-num-batched-tokens", "tokenizer", "--keyboard"))


def test_a_command_is_shown_without_its_secrets() -> None:
    argv = "serve --api-key s1 --hf-token=s2 --port 1 HF_TOKEN=s3 --token --flag"
    shown = f"serve --api-key {MASK} --hf-token={MASK} --port 1 HF_TOKEN={MASK} --token --flag"
    assert mask_command(argv.split()) == shown.split()
    assert mask_params({"hf_token": "s", "max_tokens": 1}) == {"hf_token": MASK, "max_tokens": 1}
    assert mask_params({"a": {"b": {"api-key": "s", "c": 1}}}) == {"a": {"b": {"api-key": MASK, "c": 1}}}
