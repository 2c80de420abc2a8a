"""Checks of specs, instance ids, environments and model directories."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from instance_manager.backends.model_paths import find_model
from instance_manager.errors import InvalidSpec, ModelNotFound
from instance_manager.lifecycle.specs import check_spec, new_instance_id
from instance_manager.process.environment import engine_environment
from instance_manager.types import InstanceSpec


def spec(**fields: Any) -> InstanceSpec:
    return InstanceSpec(**({"model_name": "m", "engine": "engine"} | fields))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model_name": ""}, "model_name"),
        ({"model_name": "a\0b"}, "model_name"),
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": ".."}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "x\n"}, "name"),
        ({"timeout_s": -1.0}, "timeout"),
        ({"timeout_s": float("nan")}, "timeout"),
        ({"timeout_s": float("inf")}, "timeout"),
        ({"health_path": "health"}, "health_path"),
        ({"devices": ["0", ""]}, "devices"),
        ({"devices": ["0,1"]}, "devices"),
        ({"devices": [0]}, "devices"),
        ({"env": {"A=B": "x"}}, "env.A=B"),
        ({"env": {"A": 1}}, "env.A"),
        ({"env": {"A": "\0"}}, "env.A"),
        ({"env": {"VLLM_API_KEY": "mine"}}, "env.VLLM_API_KEY"),
    ],
)
def test_an_invalid_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidSpec) as refusal:
        check_spec(spec(**fields))
    assert refusal.value.param == param


def test_a_complete_spec_passes() -> None:
    check_spec(
        spec(
            name="My-model_1.0",
            timeout_s=0,
            health_path="/ok",
            devices=["0", "GPU-1"],
            env={"A": "", "B": "x"},
        )
    )


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("berth-demo", "berth-demo"),
        ("Qwen/Qwen3-0.6B", "qwen3-0.6b"),
        ("/data/models/My Model/", "my-model"),
        ("???", "model"),
        ("x" * 90, "x" * 40),
    ],
)
def test_ids_are_a_slug_and_six_hex_digits(model: str, slug: str) -> None:
    instance_id = new_instance_id(model)
    assert re.fullmatch(re.escape(slug) + "-[0-9a-f]{6}", instance_id)
    check_spec(spec(name=instance_id))


def environment(
    base: dict[str, str], *layers: dict[str, str], devices: list[str] | None = None
) -> dict[str, str]:
    return engine_environment(base, *layers, instance_id="i", token="t", api_key="k", devices=devices)


def test_engines_do_not_get_berths_own_settings_and_secrets() -> None:
    base = {
        "PATH": "/bin",
        "API_KEYS": "s",
        "ADMIN_API_KEYS": "s",
        "STATE_URL": "redis://:s@h",
        "VLLM_API_KEY": "s",
    }
    env = environment(base | {"VLLM_DEFAULT_DTYPE": "auto", "VLLM_BASE_PORT": "9000", "VLLM_PORT": "1"})
    assert env == {
        "PATH": "/bin",
        "PYTHONUNBUFFERED": "1",
        "VLLM_API_KEY": "k",
        "BERTH_INSTANCE_ID": "i",
        "BERTH_INSTANCE_TOKEN": "t",
        "SPT_NOENV": "1",
    }


def test_later_layers_win_but_not_over_devices_and_keys() -> None:
    env = environment({"A": "0"}, {"A": "1", "CUDA_VISIBLE_DEVICES": "9"}, {"A": "2"}, devices=["1", "3"])
    assert (env["A"], env["CUDA_VISIBLE_DEVICES"], env["VLLM_API_KEY"]) == ("2", "1,3", "k")
    assert environment({}, devices=[])["CUDA_VISIBLE_DEVICES"] == ""


def test_a_name_is_looked_up_in_the_model_directories_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory in ("one", "two/berth-demo", "two/acme/model", "here"):
        (tmp_path / directory).mkdir(parents=True)
    dirs = (tmp_path / "missing", tmp_path / "one", tmp_path / "two")
    assert find_model("berth-demo", dirs) == str(tmp_path / "two/berth-demo")
    assert find_model("acme/model", dirs) == str(tmp_path / "two/acme/model")
    assert find_model(str(tmp_path / "here"), dirs) == str(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    assert find_model("./here", dirs) == str(tmp_path / "here")
    assert find_model("here", ()) == str(tmp_path / "here")


def test_a_hub_id_is_returned_unchanged(tmp_path: Path) -> None:
    assert find_model("Qwen/Qwen3-0.6B", (tmp_path,)) == "Qwen/Qwen3-0.6B"
    assert find_model("gpt2", ()) == "gpt2"


@pytest.mark.parametrize(
    "name", ["/no/such/dir", "./nope", "../nope", "~/nope-nope", "a/b/c", "a b", "--model", "."]
)
def test_a_name_that_is_neither_directory_nor_hub_id_is_not_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == ".":  # the working directory exists, so it may be a model
        assert find_model(name, ()) == str(tmp_path)
        return
    with pytest.raises(ModelNotFound) as refusal:
        find_model(name, (tmp_path,))
    assert refusal.value.param == "model_name"


def test_no_link_leads_out_of_the_model_directories(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "models"
    for directory in (outside, root / "inside", root / "loaded"):
        directory.mkdir(parents=True)
    (outside / "model.safetensors").touch()
    (root / "out").symlink_to(outside)
    (root / "in").symlink_to(root / "inside")
    (root / "loaded" / "model.safetensors").symlink_to(outside / "model.safetensors")
    assert find_model("in", (root,)) == str(root / "in")
    for name in ("out", "loaded"):
        with pytest.raises(ModelNotFound, match=f"leads out of '{root}', to '{outside}"):
            find_model(name, (root,))
    assert find_model(str(root / "out"), (root,)) == str(outside)


def test_a_name_does_not_lead_out_of_the_model_directories(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "secret").mkdir()
    with pytest.raises(ModelNotFound):
        find_model("x/../../secret", (tmp_path / "models",))
