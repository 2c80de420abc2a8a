"""llama.cpp's `llama-server`, for models in GGUF files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from instance_manager.backends.base import Backend, EngineRoutes, LaunchPlan
from instance_manager.backends.engine_choice import ChoiceFacts, FileFormat
from instance_manager.backends.llama_cpp import memory
from instance_manager.backends.llama_cpp.flags import FlagSet, in_process_flags, table
from instance_manager.backends.llama_cpp.help_text import KnownFlags
from instance_manager.backends.llama_cpp.model_files import LlamaFiles, find_files
from instance_manager.backends.llama_cpp.params import (
    DEFAULTS,
    OWNED,
    alias_of,
    pooling_flags,
    pools_by_own_flags,
    refuse_unusable,
    translated,
)
from instance_manager.backends.llama_cpp.program import (
    IN_IMAGE,
    LlamaProgram,
    find_program,
    problem_of_program,
)
from instance_manager.backends.log_patterns import ANY_SERVER, LogPatterns
from instance_manager.backends.params import check_params, merge_params
from instance_manager.backends.progress_metrics import ProgressMetrics
from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec, ManagerError
from instance_manager.gguf.header import GgufHeader
from instance_manager.gguf.models import problem_at
from instance_manager.memory.checkpoint_size import Estimate, ModelLoad, Overhead
from instance_manager.memory.kv_cache_size import Machine
from instance_manager.process.environment import child_environment
from instance_manager.process.hub_cache import is_hub_offline
from instance_manager.types import FailureClass, InstanceSpec

_MIB = 1 << 20
_C = FailureClass


class LlamaBackend(Backend):
    """Starts the program that `LLAMA_SERVER` names, or one that is found."""

    name = "llama"
    in_image = ()
    image = "ghcr.io/ggml-org/llama.cpp:server"
    remark = "llama.cpp"
    settings = ("llama_server",)
    takes_modalities = True
    api_key_variable = "LLAMA_API_KEY"
    without_sleep = "is a llama-server, which can't be put to sleep"
    progress = ProgressMetrics(
        pending=("llamacpp:requests_processing", "llamacpp:requests_deferred"),
        steps=(
            "llamacpp:prompt_tokens_total",
            "llamacpp:tokens_predicted_total",
            "llamacpp:n_decode_total",
        ),
    )
    log_patterns = ANY_SERVER | LogPatterns(
        signs=(
            (_C.MODEL_NOT_FOUND, r"failed to (fetch|download) model"),
            (_C.OUT_OF_MEMORY, r"cudaMalloc failed|ErrorOutOfDeviceMemory"),
            (_C.OUT_OF_MEMORY, r"(failed|unable) to allocate .*buffer"),
            (_C.PORT_IN_USE, r"couldn't bind HTTP server socket"),
        ),
        reasons=(
            (_C.BAD_ARGUMENTS, r"error: (?P<reason>invalid argument: .+)"),
            (_C.BAD_ARGUMENTS, r"(?P<reason>error while handling (?:argument|environment variable) .+)"),
            (
                _C.UNSUPPORTED_MODEL,
                r"gguf_init_from_\w+: (?P<reason>(?!failed to open |failed to allocate ).+)",
            ),
            (
                _C.UNSUPPORTED_MODEL,
                r"error loading model: (?P<reason>(?!.*(?:failed to load model from|to allocate|vk::)).+)",
            ),
            (_C.MODEL_NOT_FOUND, r"(?P<reason>failed to open GGUF file .*No such file.*)"),
        ),
        noise=(
            # What it prints after the cause, and of requests.
            r"failed to load model( '.*')?$|failed to load model, |cleaning up before exit"
            r"|exiting due to |common_fit_params: |failed to load model from ",
            r" I slot ",
        ),
    )
    routes = EngineRoutes(
        requests="/completion /infill /embedding /reranking /v1/reranking /apply-template /tokenize "
        "/detokenize /v1/systemone /audio/transcriptions /chat/completions/input_tokens "
        "/v1/chat/completions/input_tokens /responses/input_tokens",
        reads="/props",
        # /slots shows prompts of others; streams can be joined by whoever knows their id.
        control="/slots /slots/* /lora-adapters /metrics /v1/chat/completions/control /v1/stream "
        "/v1/streams/lookup /cors-proxy /tools /models/load /models/unload /models/sse",
    )
    # Its Responses keep no state and call one that was cut off completed; its Messages think even if told
    # not to, and have errors in OpenAI's shape.
    translated = frozenset(
        {
            "/v1/messages",
            "/v1/messages/count_tokens",
            "/v1/responses",
            "/v1/responses/input_tokens",
        }
    )
    overhead = Overhead(64 * _MIB, 512 * _MIB)
    allocates_on_use = True

    def __init__(self) -> None:
        self._known = KnownFlags()

    def plan(self, spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
        program = IN_IMAGE if spec.runtime is not None else find_program(config.options)
        if program is None:
            raise InvalidSpec(f"engine 'llama': {problem_of_program(config.options)}", param="engine")
        check_params(spec.params, OWNED)
        accepted = self._flags_of(program)
        defaults = {name: value for name, value in DEFAULTS.items() if accepted.may_have(name)}
        params = merge_params(defaults, spec.params)
        refuse_unusable(params)
        files = self._files(spec, config, params)
        header = files.header()
        flags = _with_projector(translated(params, header), files)
        accepted.check(flags)
        alias = alias_of(params, spec.model_name)
        source = _source(files, program, is_offline=is_hub_offline(_environ(spec, config)))
        started = [*program.argv, *accepted.to_argv(flags), *source, "--alias", alias]

        def argv(host: str, port: int) -> list[str]:
            return [*started, "--host", host, "--port", str(port)]

        return LaunchPlan(
            argv,
            params,
            alias,
            health_path=spec.health_path or "/health",
            runner=_runner(params, header, files),
            keeps_connections=False,  # it closes one after each stream, and its header says the opposite
        )

    def problems_of_settings(self, options: Mapping[str, Any], *, is_default: bool) -> Iterator[str]:
        """Also reads the program's flags, for later plans."""
        program = find_program(options)
        if program is not None and program.binary is not None:
            knows_none = not self._known.read(program.binary)
            if knows_none and options.get("llama_server") is not None:
                yield f"LLAMA_SERVER={options['llama_server']}: doesn't answer --help as a llama-server does"
        elif program is None and (is_default or options.get("llama_server") is not None):
            problem = problem_of_program(options)
            yield problem if options.get("llama_server") is not None else f"DEFAULT_ENGINE=llama: {problem}"

    def reason_to_choose(self, facts: ChoiceFacts) -> str | None:
        if facts.file_format is not FileFormat.GGUF:
            return None
        program = find_program(facts.options)
        return None if program is None else f"GGUF files, and llama-server was found: {program.found_by}"

    def problem_of_name(self, spec: InstanceSpec, config: ManagerConfig) -> str | None:
        environ = _environ(spec, config)
        if not is_hub_offline(environ) or self._files(spec, config, spec.params).weights is not None:
            return None
        return (
            f"model {spec.model_name!r} is neither a GGUF file, nor a folder under MODEL_DIRS, nor in the "
            "hub cache, and HF_HUB_OFFLINE forbids a download"
        )

    def problem_of_start(self, spec: InstanceSpec, config: ManagerConfig) -> str | None:
        if (problem := self.problem_of_name(spec, config)) is not None:
            return problem
        weights = self._files(spec, config, spec.params).weights
        return (None if weights is None else problem_at(weights)) or _missing_files(spec.params)

    def estimate(self, load: ModelLoad, machine: Machine) -> Estimate:
        files = _files_at(load)
        weights = _all_weights(load.params, files, load.weights_bytes)
        header = files.header(whole=True)  # as `read_load` has just read it; a small vocabulary lies behind
        return memory.estimate(load.params, header, weights, machine, self.overhead)

    def _files(self, spec: InstanceSpec, config: ManagerConfig, params: Mapping[str, Any]) -> LlamaFiles:
        return find_files(spec.model_name, params, config.model_dirs, _environ(spec, config))

    def _flags_of(self, program: LlamaProgram) -> FlagSet:
        """The program's own, if they were read already; else those of the version that the table is of."""
        if program.binary is None:
            return FlagSet(in_process_flags(), is_complete=True)
        if known := self._known.of(program.binary):
            return FlagSet(known, is_complete=True)
        return FlagSet(table(), is_complete=False)


def _environ(spec: InstanceSpec, config: ManagerConfig) -> Mapping[str, str]:
    return child_environment(os.environ, config.engine_env, spec.env)


def _source(files: LlamaFiles, program: LlamaProgram, *, is_offline: bool) -> list[str]:
    """What it loads: a file, or from the hub, which it then downloads itself. Raises InvalidSpec."""
    if files.weights is not None:
        return ["--model", str(files.weights)]
    if program.binary is None:
        message = f"llama.cpp's server in a Python package can't download: berth pull {files.hub_id}"
        raise InvalidSpec(message, param="model_name")
    return ["--hf-repo", files.hub_id, *(["--offline"] if is_offline else [])]


def _with_projector(flags: dict[str, Any], files: LlamaFiles) -> dict[str, Any]:
    """With the projector beside the model, unless the flags say something of one."""
    names = ("mmproj", "mm", "mmproj_url", "mmu", "mmproj_auto", "no_mmproj", "no_mmproj_auto")
    if files.projector is not None and not any(name in flags for name in names):
        return {**flags, "mmproj": str(files.projector)}
    if files.weights is not None and flags.get("mmproj") is False:  # only of a download it chooses one itself
        return {name: value for name, value in flags.items() if name != "mmproj"}
    return flags


def _runner(params: Mapping[str, Any], header: GgufHeader, files: LlamaFiles) -> RunnerKind | None:
    if pools_by_own_flags(params) or pooling_flags(params, header):
        return RunnerKind.POOLING
    is_known = files.weights is not None or params.get("runner") == "generate"
    return RunnerKind.GENERATE if is_known else None


def _all_weights(params: Mapping[str, Any], files: LlamaFiles, otherwise: int) -> int:
    """Bytes of all files: parts, the projector and the draft model."""
    others = [files.projector] if params.get("mmproj", True) else []
    others += [params.get(name) for name in ("mmproj", "mm", *_DRAFTS) if isinstance(params.get(name), str)]
    sizes = [_size(Path(path)) for path in others if path is not None]
    return (otherwise if files.model is None else files.model.weights_bytes) + sum(sizes)


_DRAFTS = ("model_draft", "spec_draft_model", "md")


def _missing_files(params: Mapping[str, Any]) -> str | None:
    """Files that flags name, and that aren't there."""
    for name in ("mmproj", "mm", *_DRAFTS):
        given = params.get(name)
        if isinstance(given, str) and not Path(given).is_file():
            return f"params.{name}: there is no file {given}"
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _files_at(load: ModelLoad) -> LlamaFiles:
    try:
        return find_files(str(load.path), load.params, (), load.environ)
    except ManagerError:
        return LlamaFiles(None)
