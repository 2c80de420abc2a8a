"""From an entry of models.yaml to the spec of a replica: every field arrives."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from composition.catalog_profiles import CatalogProfiles
from configs.model_entry import ModelEntry
from configs.settings import Settings
from instance_manager.fleet.next_replica import spec_of
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.types import ExpireAction, InstanceSpec, ReplicaOptions

ENTRY = """
models:
  chat:
    command: [serve, "{port}"]
    model: org/model
    params: {max-num-seqs: 4}
    dtype: half
    aliases: [talk]
    devices: [0, 1]
    timeout: 30
    expire_action: sleep2
    min_replicas: 1
    max_replicas: 2
    pinned: true
    concurrency_limit: 3
    env: {A: b}
    health_path: /ready
    filters: {set_params: {top_k: 1}, strip_params: [logit_bias]}
    preload: true
"""


def profile_of(text: str, folder: Path) -> ModelProfile:
    file = folder / "models.yaml"
    file.write_text(text, encoding="utf-8")
    values: dict[str, Any] = {"models_file": file, "model_dirs": [], "_env_file": None}
    settings = Settings(**values)
    return CatalogProfiles(settings, frozenset(), folder / "hub").profiles()[0]


def test_a_profile_says_why_it_has_its_engine(tmp_path: Path) -> None:
    """What the entry says counts first, then DEFAULT_ENGINE, then the files."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.safetensors").write_bytes(b"")
    file = tmp_path / "models.yaml"
    for entry, default, engine, reason in (
        ("engine: vllm", "sglang", "vllm", "named in models.yaml"),
        ("engine: auto", "sglang", "sglang", "DEFAULT_ENGINE=sglang"),
        ("pinned: true", "sglang", "sglang", "DEFAULT_ENGINE=sglang"),
        ("pinned: true", "auto", "vllm", "safetensors, a GPU, and VLLM_PYTHON is set"),
    ):
        file.write_text(f"models: {{a: {{path: files, {entry}}}}}")
        values: dict[str, Any] = {"models_file": file, "model_dirs": [], "_env_file": None}
        settings = Settings(**values, default_engine=default, vllm_python=sys.executable)
        (profile,) = CatalogProfiles(settings, frozenset(), tmp_path / "hub", lambda: ["gpu"]).profiles()
        assert (profile.engine, profile.engine_reason) == (engine, reason)
        assert spec_of(profile).engine_reason == reason


def test_an_entry_becomes_a_profile_and_a_spec(tmp_path: Path) -> None:
    profile = profile_of(ENTRY, tmp_path)
    assert profile == ModelProfile(
        "chat",
        "org/model",
        "command",
        params={"dtype": "half", "max_num_seqs": 4},
        aliases=("talk",),
        idle_timeout_s=30.0,
        min_replicas=1,
        max_replicas=2,
        set_params={"top_k": 1},
        strip_params=frozenset({"logit_bias"}),
        preload=True,
        env={"A": "b"},
        devices=("0", "1"),
        command=("serve", "{port}"),
        health_path="/ready",
        pinned=True,
        concurrency_limit=3,
        expire_action=ExpireAction.SLEEP2,
    )
    assert spec_of(profile) == InstanceSpec(
        "org/model",
        "command",
        params={"dtype": "half", "max_num_seqs": 4},
        timeout_s=30.0,
        profile="chat",
        **profile.replica_options(),
    )


def test_an_entry_without_options_has_the_defaults(tmp_path: Path) -> None:
    profile = profile_of("models: {chat: {model: org/model}}\n", tmp_path)
    assert profile.replica_options() == ReplicaOptions().replica_options()


def test_every_option_of_a_replica_is_a_field_of_an_entry() -> None:
    """So a new one is added in two places: in models.yaml's entry and in the options."""
    assert {each.name for each in fields(ReplicaOptions)} <= ModelEntry.model_fields.keys()
