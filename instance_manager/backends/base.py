"""An engine kind: everything that Berth knows of it is in one `Backend`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from instance_manager.backends.engine_choice import ChoiceFacts
from instance_manager.backends.load_signs import ANY_ENGINE, LoadSign
from instance_manager.backends.log_patterns import ANY_SERVER, LogPatterns
from instance_manager.backends.progress_metrics import ProgressMetrics
from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.backends.sleep_style import SleepStyle
from instance_manager.config import ManagerConfig
from instance_manager.memory.checkpoint_size import Estimate, ModelLoad, Overhead
from instance_manager.memory.kv_cache_size import Machine
from instance_manager.process.containers.command import ContainerPlan
from instance_manager.types import InstanceSpec

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """How to start an engine, except for its port, and how to check that it is ready."""

    argv: Callable[[str, int], list[str]]  # (host, port) -> the command
    params: Mapping[str, Any]  # as merged
    served_model_name: str
    health_path: str = "/health"
    must_name_model: bool = True  # whether /v1/models has to name the served model
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    sleep_style: SleepStyle | None = None  # None = it can't sleep
    runner: RunnerKind | None = None  # what it can serve; None = unknown
    isolates_tenants: bool = False  # it gets the tenant of each request
    container: ContainerPlan | None = None  # in which `argv` runs; None = it is a plain process
    keeps_connections: bool = True  # else it may close one behind a response without saying so


@dataclass(frozen=True, slots=True)
class EngineRoutes:
    """A kind's routes besides those that every OpenAI-compatible server has. All others need an admin key.

    Paths, separated by spaces; `*` matches one segment, a final `**` everything below.
    """

    requests: str = ""  # serve one client's own request
    reads: str = ""  # GET: information for every client
    control: str = ""  # affect all clients: need an admin key even if another kind has such a request
    sleep: str = ""  # of these, those that put it to sleep, at the level in `?level=`
    asleep: str = ""  # of these, those that it answers asleep, so that they don't wake it


class Backend(ABC):
    """One kind of engine. The defaults are what Berth assumes of any server.

    Some params have one name for all kinds: fields of models.yaml (`max_model_len` …), `served_model_name`,
    `lora_modules`. A kind whose flags have other names translates them in `plan`.
    """

    name: ClassVar[str]  # in `engine: …`
    remark: ClassVar[str] = ""  # beside the name where the kinds are listed
    settings: ClassVar[tuple[str, ...]] = ()  # the fields of Berth's settings that are about this kind alone
    takes_params: ClassVar[bool] = True
    runs_command: ClassVar[bool] = False  # runs the `command` of a model's entry, and needs one
    finds_model: ClassVar[bool] = True  # what it loads is a folder or a hub id; else a model has any name
    # What comes before its flags if it runs in a container (`spec.runtime`): with (), the image's entrypoint
    # is the engine. None = it can't run in one.
    in_image: ClassVar[tuple[str, ...] | None] = None
    image: ClassVar[str | None] = None  # where a model's entry names none
    takes_modalities: ClassVar[bool] = False  # images and sound, where the model's files have parts for them

    takes_llama_fields: ClassVar[bool] = True  # llama.cpp's sampling fields; else a request's are refused
    unlimited_tokens: ClassVar[int | None] = -1  # `max_tokens` of a completion up to the end of the context

    api_key_variable: ClassVar[str] = "VLLM_API_KEY"  # from which it reads the key that its clients must send
    metrics_path: ClassVar[str] = "/metrics"  # in Prometheus's format
    without_sleep: ClassVar[str] = "has no sleep mode"  # said of an engine whose plan has no sleep style
    progress: ProgressMetrics | None = None  # None = whether it is stuck can't be known
    log_patterns: LogPatterns = ANY_SERVER
    load_signs: ClassVar[Sequence[LoadSign]] = ANY_ENGINE  # in its log, of how far its start is
    routes: ClassVar[EngineRoutes] = EngineRoutes()
    # APIs that every version of it has; whether it has another one, Berth asks each process once.
    speaks: ClassVar[frozenset[str]] = frozenset({"/v1/chat/completions", "/v1/completions"})
    # APIs that some versions have, but with less than Berth's translation: that is used with all of them.
    translated: ClassVar[frozenset[str]] = frozenset()

    overhead: ClassVar[Overhead] = Overhead(256 * _MIB, 512 * _MIB)
    allocates_on_use: ClassVar[bool] = False  # so that a measured peak may be less than what it will hold
    checks_files: ClassVar[bool] = False  # whether `problem_of_files` knows anything

    @abstractmethod
    def plan(self, spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
        """Check the spec and turn it into a plan. Raises InvalidSpec or ModelNotFound."""

    def problems_of_settings(self, options: Mapping[str, Any], *, is_default: bool) -> Iterable[str]:
        """What is wrong with `settings`, one line each. `is_default`: it is the setting DEFAULT_ENGINE."""
        return ()

    def reason_to_choose(self, facts: ChoiceFacts) -> str | None:
        """Why it should run a model for which no kind is named, in one line; None if it shouldn't."""
        return None

    def problem_of_start(self, spec: InstanceSpec, config: ManagerConfig) -> str | None:
        """What would fail every start of a spec that has a plan. Blocks for a moment."""
        return None

    def problem_of_name(self, spec: InstanceSpec, config: ManagerConfig) -> str | None:
        """Why it could never find the model of a spec that has a plan. Blocks for a moment."""
        return None

    def problem_of_files(self, path: Path, params: Mapping[str, Any], *, may_download: bool) -> str | None:
        """Why it can't run the files at `path`; None if no problem is known. Blocks for a moment.

        `params`: merged flags. `may_download`: it will fetch missing files.
        """
        return None

    def calls_tools(self, params: Mapping[str, Any]) -> bool:
        """Whether, with these flags, it turns a model's text into tool calls where the template has tools."""
        return True

    def problem_of_flags(self, path: Path | None, params: Mapping[str, Any]) -> str | None:
        """Why it would refuse the flags beside the files at `path`, or beside those that the flags name.

        None if no problem is known. `path`: None where the model has to be downloaded. Blocks for a moment.
        """
        return None

    def files_beside_flags(self, path: Path | None, params: Mapping[str, Any]) -> Iterable[Path]:
        """What `problem_of_flags` reads: its answer stays the same until one of them changes."""
        return ()

    def estimate(self, load: ModelLoad, machine: Machine) -> Estimate:
        """The memory of an instance that has never run."""
        gpu_bytes = self.overhead.gpu_bytes if machine.num_gpus else 0
        fixed_bytes = load.weights_bytes + gpu_bytes * machine.num_gpus
        return Estimate(
            weights_bytes=load.weights_bytes,
            kv_cache_bytes=self.kv_cache_bytes(load, machine, fixed_bytes),
            host_overhead_bytes=self.overhead.host_bytes,
            gpu_overhead_bytes=gpu_bytes,
            num_gpus=machine.num_gpus,
        )

    def kv_cache_bytes(self, load: ModelLoad, machine: Machine, fixed_bytes: int) -> int:
        """The KV cache that it allocates at its start. `fixed_bytes`: what else it takes on all its GPUs."""
        return 0  # unknown
