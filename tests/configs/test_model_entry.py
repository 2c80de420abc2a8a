"""Entries of models.yaml as they apply: flags, paths, lists, and values from the defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from composition.policies import engine_kinds
from configs.catalog import parse_catalog
from configs.catalog_error import CatalogError
from configs.extra_args import parse_extra_args
from configs.model_entry import ModelEntry

KINDS = engine_kinds()

PATH = Path("/somewhere/models.yaml")


def entry(fields: str, defaults: str = "") -> ModelEntry:
    return parse_catalog(f"defaults: {{{defaults}}}\nmodels:\n  o/a: {{{fields}}}\n", PATH, KINDS).models[
        "o/a"
    ]


@pytest.mark.parametrize(
    ("arguments", "params"),
    [
        ([], {}),
        (["--max-num-seqs", 8, "--enforce-eager"], {"max_num_seqs": 8, "enforce_eager": True}),
        (["--swap-space=4", "--seed", "-1"], {"swap_space": "4", "seed": "-1"}),
        (["--lora-modules", "a=b", "c=d"], {"lora_modules": ["a=b", "c=d"]}),
        (["--no-prefix-caching", "--x="], {"no_prefix_caching": True, "x": ""}),
        ({"max-num-seqs": 8, "--seed": None}, {"max_num_seqs": 8, "seed": None}),
    ],
)
def test_extra_args_become_parameters(arguments: Any, params: dict[str, Any]) -> None:
    assert parse_extra_args(arguments) == params


def test_params_win_over_extra_args_and_those_over_fields() -> None:
    one = entry(
        "max_model_len: 1, dtype: half, trust_remote_code: false, gpu_memory_utilization: 0.5,"
        "tensor_parallel_size: 2, response_role: bot, extra_args: [--max-model-len, 2, --dtype, auto, --a-b],"
        "params: {max-model-len: 3, seed: null}"
    )
    assert one.engine_params() == {
        "max_model_len": 3,
        "dtype": "auto",
        "trust_remote_code": False,
        "gpu_memory_utilization": 0.5,
        "tensor_parallel_size": 2,
        "response_role": "bot",
        "a_b": True,
        "seed": None,
    }


def test_defaults_apply_unless_a_model_overrides_them() -> None:
    defaults = (
        "timeout: 30, dtype: half, pinned: true, devices: [0], params: {x: 1, y: 1}, env: {A: 1, B: 1},"
        "filters: {set_params: {t: 0, u: 0}, strip_params: [user]}, extra_args: [--z]"
    )
    one = entry(
        "timeout: null, pinned: false, params: {y: 2, x: null}, env: {A: null},"
        "filters: {set_params: {t: null}}, extra_args: [--w]",
        defaults,
    )
    assert (one.timeout, one.dtype, one.pinned, one.devices) == (None, "half", False, ("0",))
    assert one.params == {"x": None, "y": 2}  # null is passed on to the engine's flags and removes x there
    assert one.env == {"B": "1"}
    assert one.filters.set_params == {"t": None, "u": 0}
    assert one.filters.strip_params == ("user",)
    assert one.extra_args == {"w": True}


def test_a_model_found_on_disk_gets_the_defaults() -> None:
    catalog = parse_catalog("defaults: {timeout: 5, params: {x: 1}}\n", PATH)
    found = catalog.found_entry(Path("/models/one"))
    assert (found.target, found.timeout, found.params) == ("/models/one", 5, {"x": 1})


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ("path: one", "/somewhere/one"),
        ("path: /abs/one", "/abs/one"),
        ("path: ~/one", str(Path.home() / "one")),
        ("model: org/b", "org/b"),
        ("", "o/a"),
    ],
)
def test_the_loaded_model_is_the_path_or_the_hub_id(fields: str, target: str) -> None:
    assert entry(fields).target == target


def test_a_template_is_a_file_beside_the_catalog_or_itself() -> None:
    assert entry("chat_template: t.jinja").chat_template == "/somewhere/t.jinja"
    assert entry("chat_template: '{{ messages }}'").chat_template == "{{ messages }}"


@pytest.mark.parametrize("devices", ["[0, 1]", "['0', '1']", "'0, 1'"])
def test_devices_have_several_notations(devices: str) -> None:
    assert entry(f"devices: {devices}").devices == ("0", "1")


def test_one_device_and_none() -> None:
    assert entry("devices: 3").devices == ("3",)
    assert entry("devices: []").devices == ()
    assert entry("").devices is None


def test_a_command_needs_no_engine_field() -> None:
    one = entry("command: [serve, --port, '{port}'], health_path: /ready")
    assert (one.engine, one.command, one.health_path) == ("command", ("serve", "--port", "{port}"), "/ready")


def test_variables_may_be_numbers() -> None:
    assert entry("env: {OMP_NUM_THREADS: 4, RATE: 0.5, NAME: x}").env == {
        "OMP_NUM_THREADS": "4",
        "RATE": "0.5",
        "NAME": "x",
    }


def test_an_entry_may_run_in_a_container() -> None:
    one = entry(
        "engine: vllm, runtime: podman, image: an/image, volumes: ['/a:/b'], gpus: 2, run_args: [--ipc=host]"
    )
    assert (one.runtime, one.image, one.gpus) == ("podman", "an/image", "2")
    assert (one.volumes, one.run_args) == (("/a:/b",), ("--ipc=host",))


def test_an_entry_may_opt_out_of_the_defaults_container() -> None:
    one = entry(
        "runtime: process", "runtime: docker, image: an/image, volumes: ['/a:/b'], run_args: [--init]"
    )
    assert (one.runtime, one.image, one.volumes, one.run_args) == (None, None, (), ())
    assert entry("gpus: all", "runtime: docker, image: an/image").image == "an/image"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("image: an/image", "`image` needs a `runtime`: docker or podman"),
        ("run_args: [--init]", "`run_args` needs a `runtime`: docker or podman"),
        ("runtime: lxc, image: a", "runtime"),
        ("stop_command: [x]", "`stop_command` needs `engine: command`"),
        ("engine: command", "needs a `command`"),
    ],
)
def test_what_lacks_its_other_half_is_a_mistake(fields: str, problem: str) -> None:
    with pytest.raises(CatalogError, match=re.escape(problem)):
        entry(fields)


def test_an_image_may_bring_the_command() -> None:
    assert entry("engine: command, runtime: docker, image: a").command is None
