"""Which command starts an engine in a container, with which files and variables, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from composition.policies import engine_kinds
from configs.catalog import parse_catalog
from instance_manager.backends import BACKENDS, plan_launch
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec
from instance_manager.process.containers.command import ContainerPlan, ContainerRun, gpu_flags, run_command
from instance_manager.process.containers.environment import values_of_e
from instance_manager.types import InstanceSpec
from tests.berth_process import ROOT

RUN = ContainerRun("chat", 3, "owner.secret")


def spec(engine: str = "command", **fields: Any) -> InstanceSpec:
    if engine == "command":
        fields.setdefault("command", ("serve", "--port", "{port}"))
    return InstanceSpec("some/model", engine, **{"runtime": "docker", "image": "an/image", **fields})


def container_of(one: InstanceSpec, **config: Any) -> ContainerPlan:
    found = plan_launch(one, ManagerConfig(**config)).container
    assert found is not None
    return found


def command(plan: ContainerPlan, argv: Sequence[str] = ("serve",)) -> str:
    whole = run_command(
        "docker", plan, RUN, argv, host="127.0.0.1", port=9000, env=["A"], id_file=Path("/run/id"), flags=[]
    )
    return " ".join(whole)


def test_the_command_names_labels_and_limits_the_container() -> None:
    plan = ContainerPlan("docker", "an/image", mounts=("/m:/m:ro",), run_args=("--memory", "8g"))
    whole = command(plan)
    assert whole.startswith(
        "docker run --name berth-chat-3 --label berth.instance=chat --label berth.owner=owner"
    )
    assert whole.endswith("-v /m:/m:ro -e A --memory 8g an/image serve")
    for part in ("--cidfile /run/id", "--log-driver none", "--shm-size 8g"):
        assert part in whole
    assert "secret" not in whole


@pytest.mark.parametrize(
    ("run_args", "network"),
    [
        ((), "--network host"),
        (("--network", "bridge"), "-p 127.0.0.1:9000:9000"),
        (("--net=mine",), "-p 127.0.0.1:9000:9000"),
        (("--network=host",), "--network=host"),
        (("--network", "bridge", "-p", "127.0.0.1:{port}:80"), "-p 127.0.0.1:9000:80"),
    ],
)
def test_the_port_is_reached_from_this_machine_alone(
    run_args: tuple[str, ...], network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    whole = command(ContainerPlan("docker", "an/image", run_args=run_args))
    assert network in whole
    assert whole.count("-p ") + whole.count("network host") + whole.count("network=host") == 1


def test_without_a_host_network_the_port_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert "-p 127.0.0.1:9000:9000" in command(ContainerPlan("docker", "an/image"))


def test_shared_memory_and_security_are_the_user_s_if_given() -> None:
    given = ContainerPlan("podman", "i", run_args=("--ipc=host", "--security-opt", "seccomp=unconfined"))
    assert "--shm-size" not in command(given) and "label=disable" not in command(given)
    assert "--security-opt label=disable" in command(ContainerPlan("podman", "i"))


@pytest.mark.parametrize(
    ("gpus", "devices", "docker", "podman"),
    [
        (None, None, ["--gpus", "all"], ["--device", "nvidia.com/gpu=all"]),
        (None, ("GPU-a",), ["--gpus", "device=GPU-a"], ["--device", "nvidia.com/gpu=GPU-a"]),
        (
            None,
            ("GPU-a", "GPU-b"),
            ["--gpus", '"device=GPU-a,GPU-b"'],
            ["--device", "nvidia.com/gpu=GPU-a", "--device", "nvidia.com/gpu=GPU-b"],
        ),
        (None, (), [], []),
        ("none", ("GPU-a",), [], []),
        ("all", ("GPU-a",), ["--gpus", "all"], ["--device", "nvidia.com/gpu=all"]),
        ("2", None, ["--gpus", "2"], ["--device", "nvidia.com/gpu=0", "--device", "nvidia.com/gpu=1"]),
    ],
)
def test_the_container_sees_the_gpus_that_the_instance_was_given(
    gpus: str | None, devices: Sequence[str] | None, docker: list[str], podman: list[str]
) -> None:
    plan = ContainerPlan("docker", "i", gpus=gpus)
    assert gpu_flags(plan, devices, has_gpus=True) == docker
    assert gpu_flags(replace(plan, runtime="podman"), devices, has_gpus=True) == podman


def test_a_machine_without_gpus_shows_none() -> None:
    assert gpu_flags(ContainerPlan("docker", "i"), None, has_gpus=False) == []


def test_variables_travel_by_name_and_this_machine_s_own_stay_here() -> None:
    env = {
        "PATH": "/there/bin",  # chosen: the container's
        "HOME": "/root",
        "LD_LIBRARY_PATH": "/here/lib",
        "HF_TOKEN": "hf_secret",
        "HF_HOME": "/here/hub",
        "VLLM_API_KEY": "key",
        "CUDA_VISIBLE_DEVICES": "0",
        "https_proxy": "http://proxy",
        "MY_OWN": "x",
        "DOCKER_HOST": "unix:///here.sock",
    }
    values, program_env = values_of_e(env, {"PATH": "/here/bin"}, {"PATH", "MY_OWN", "VLLM_API_KEY"})
    assert values == ["PATH=/there/bin", "HF_TOKEN", "VLLM_API_KEY", "https_proxy", "MY_OWN"]
    assert program_env["PATH"] == "/here/bin" and program_env["DOCKER_HOST"] == "unix:///here.sock"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"runtime": "rkt"}, "runtime"),
        ({"runtime": None}, "image"),
        ({"runtime": None, "image": None, "gpus": "all"}, "gpus"),
        ({"runtime": None, "image": None, "run_args": ["-x"]}, "run_args"),
        ({"runtime": None, "image": None, "volumes": ["/a:/b"]}, "volumes"),
        ({"image": None}, "image"),
        ({"image": "-v"}, "image"),
        ({"image": "two words"}, "image"),
        ({"gpus": "some"}, "gpus"),
        ({"volumes": ["/only"]}, "volumes"),
        ({"volumes": [":/there"]}, "volumes"),
        ({"volumes": ["/here:there"]}, "volumes"),
        ({"run_args": ["alpine"]}, "run_args"),
        ({"run_args": ["--name", "mine"]}, "run_args"),
        ({"run_args": ["--name=mine"]}, "run_args"),
        ({"run_args": ["--rm"]}, "run_args"),
        ({"run_args": ["-d"]}, "run_args"),
        ({"run_args": ["-it"]}, "run_args"),
        ({"run_args": ["--label", "berth.owner=x"]}, "run_args"),
        ({"run_args": ["--label=berth.run=x"]}, "run_args"),
        ({"run_args": ["--memory", 8]}, "run_args"),
    ],
)
def test_a_field_that_cannot_be_right_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        plan_launch(spec(**fields), ManagerConfig())
    assert refused.value.param == param


@pytest.mark.parametrize("run_args", [["--label", "mine=1"], ["-p", "1:1"], ["-e", "A=b"], ["--init=false"]])
def test_other_flags_are_the_user_s(run_args: list[str]) -> None:
    assert container_of(spec(run_args=run_args)).run_args == tuple(run_args)


def test_stop_command_is_for_commands_alone() -> None:
    with pytest.raises(InvalidSpec, match="stop_command is for engine 'command'"):
        plan_launch(InstanceSpec("m", "engine", stop_command=("x",)), ManagerConfig())
    with pytest.raises(InvalidSpec, match="stop_command must be a list"):
        plan_launch(spec(stop_command=("",)), ManagerConfig())


@pytest.mark.parametrize(
    ("engine", "begins"),
    [
        ("vllm", ["--"]),
        ("engine", ["/opt/venv/bin/python", "-m", "engine"]),
        ("sglang", ["python3", "-c"]),
        ("tei", ["--"]),
        ("llama", ["--"]),
        ("command", ["serve"]),
    ],
)
def test_each_kind_says_what_runs_in_its_image(engine: str, begins: list[str], tmp_path: Path) -> None:
    """vLLM needs no interpreter here: its image's entrypoint is the engine."""
    (tmp_path / "some" / "model").mkdir(parents=True)
    (tmp_path / "some" / "model" / "m.gguf").touch()
    plan = plan_launch(spec(engine), ManagerConfig(model_dirs=(tmp_path,)))
    argv = plan.argv("127.0.0.1", 9000)
    assert all(a.startswith(b) for a, b in zip(argv, begins, strict=False))
    assert "9000" in argv and plan.cwd is None and "PYTHONPATH" not in plan.env


def test_vllm_has_an_image_of_its_own() -> None:
    assert BACKENDS["vllm"].image == container_of(spec("vllm", image=None)).image == "vllm/vllm-openai:latest"


def test_a_command_may_be_left_to_the_image() -> None:
    plan = plan_launch(spec(command=None, run_args=["-p", "127.0.0.1:{port}:80"]), ManagerConfig())
    assert plan.argv("127.0.0.1", 9000) == []
    with pytest.raises(InvalidSpec):
        plan_launch(InstanceSpec("m", "command"), ManagerConfig())


def test_a_model_s_files_are_mounted_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "some" / "model").mkdir(parents=True)
    template, adapter = tmp_path / "chat.jinja", tmp_path / "adapter"
    template.touch()
    adapter.mkdir()
    params = {"chat_template": str(template), "lora_modules": [f"sql={adapter}"], "dtype": "/not/there"}
    plan = container_of(spec("vllm", params=params, volumes=["/data:/data"]), model_dirs=(tmp_path,))
    model = tmp_path / "some" / "model"
    expected = [f"{path}:{path}:ro" for path in (model, template, adapter)]
    assert list(plan.mounts) == [*expected, "/data:/data"]


def test_of_the_hub_s_cache_a_model_s_whole_folder_is_mounted(tmp_path: Path) -> None:
    """Its files are links to a folder beside."""
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    plan = container_of(spec("vllm"), model_dirs=(tmp_path,))
    assert plan.mounts == (f"{repository}:{repository}:ro",)


def test_a_model_that_is_downloaded_goes_to_the_hub_s_cache(tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    (tmp_path / "token").write_text("hf_x")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    one = spec("vllm", params={"lora_modules": [f"sql={adapter}"]})
    plan = container_of(one, engine_env={"HF_HUB_CACHE": str(cache), "HF_TOKEN": ""})
    token = tmp_path / "token"
    assert plan.mounts == (f"{cache}:{cache}", f"{token}:{token}:ro", f"{adapter}:{adapter}:ro")
    assert plan.folders == (cache,)
    assert plan.env["HF_HUB_CACHE"] == plan.env["HUGGINGFACE_HUB_CACHE"] == str(cache)
    assert plan.env["HF_TOKEN_PATH"] == str(token)


def test_all_files_of_a_gguf_model_are_mounted(tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    path.touch()
    plan = container_of(replace(spec(), model_name=str(path)))
    assert plan.mounts == (f"{tmp_path}:{tmp_path}:ro",)


def test_the_page_s_examples_are_valid() -> None:
    page = (ROOT / "docs" / "containers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        for name, entry in parse_catalog(block, Path("models.yaml"), engine_kinds()).models.items():
            one = InstanceSpec(
                entry.target or name,
                entry.engine or "engine",
                runtime=entry.runtime,
                image=entry.image,
                run_args=entry.run_args,
                volumes=entry.volumes,
                command=entry.command,
            )
            assert container_of(one).image == entry.image
