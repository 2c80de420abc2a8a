"""Why the embedded engine can't run a checkpoint, found from file names and JSON before a start.

Covers most of the checks that the engine itself makes, in its words (engine/checkpoint/layout.py and
engine/models/): a process boundary separates the two, and a test compares them. The engine reports the
remaining problems within a second of its start. Reads no weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instance_manager.backends.gguf_problem import problem_of_gguf
from instance_manager.backends.quantisation_problem import quantisation_problem

_FAMILIES = (  # of decoders, with classes of the engine's own
    *("Gemma3", "Granite", "Llama", "Ministral", "Mistral", "Olmo2", "Olmo3"),
    *("Phi3", "Qwen2", "Qwen3", "Qwen3Moe", "SmolLM3"),
)
GENERATING = frozenset(f"{family}ForCausalLM" for family in _FAMILIES)
ENCODERS = frozenset(
    f"{family}{head}"
    for family in (
        *("Bert", "Roberta", "XLMRoberta", "Camembert", "DistilBert", "Electra", "MPNet", "NomicBert"),
        *("New", "Gte", "JinaBert", "JinaEmbeddingsV3", "ModernBert"),
    )
    for head in ("Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification")
)
DECODERS = frozenset(
    f"{family}{head}"
    for family in _FAMILIES
    for head in ("ForCausalLM", "Model", "ForSequenceClassification")
) - {"Gemma3Model", "Gemma3ForSequenceClassification"} | {
    *("Gemma3TextModel", "Gemma3TextForSequenceClassification"),
    *("EuroBertModel", "EuroBertForMaskedLM"),
    *("LlamaBidirectionalModel", "LlamaBidirectionalForSequenceClassification"),
}

_ROPE_KINDS = ("default", "dynamic", "linear", "llama3", "longrope", "yarn")
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_MAY_GENERATE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # whatever transformers knows
_HEADLESS = ("ForSequenceClassification", "ForMaskedLM", "ForPreTraining", "Model")
_MAY_POOL = ("ForCausalLM", "LMHeadModel", "ForSequenceClassification", "Model")
_VLLM = "vLLM may run it (`engine: vllm`)"
_UNFINISHED = "its download isn't finished."
_TOKENIZERS = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "tekken.json"})
_NOT_WEIGHTS = frozenset(
    {"training_args.bin", "optimizer.bin", "scheduler.bin", "optimizer.pt", "scheduler.pt"}
)
_SHARD = re.compile(r"(.*)-(\d{5,})-of-(\d{5,})\.safetensors")
_GGUF_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_POINTER_BYTES = 1024
_SHOWN = 5


def problem_of(path: Path, params: Mapping[str, Any], *, may_download: bool = False) -> str | None:
    """Why the embedded engine won't run the checkpoint at `path`; None if no problem is known.

    `params`: its merged flags, with underscores. `may_download`: the engine will fetch missing files. Blocks
    for a moment.
    """
    if path.suffix == ".gguf" and path.is_file():
        return problem_of_gguf(path)
    try:
        names = frozenset(entry.name for entry in path.iterdir())
    except OSError:
        return None
    num_gguf = len(_gguf_models(names))
    if num_gguf and (params.get("load_format") == "gguf" or ("config.json" not in names and num_gguf == 1)):
        return None  # as for a file
    if may_download:
        if "config.json" not in names:
            return None
    elif problem := _layout(path, names):
        return problem
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        return f"config.json can't be read: {error}"
    if not isinstance(config, dict):
        return "config.json doesn't contain a JSON object."
    raw = with_overrides(config, params.get("hf_overrides"))
    problem = quantisation_problem(path, names, raw) or _architecture(path, raw, params)
    if problem is not None or may_download:
        return problem
    return _weights(path, names) or _tokenizer(names, params)


_GGUF = "it holds GGUF weights only: name the .gguf file as the model, or run llama.cpp (`engine: llama`)."


def _gguf_models(names: Iterable[str]) -> frozenset[str]:
    """Names without the number of a part; projectors of images, which lie beside a model, are none."""
    files = (name for name in names if name.endswith(".gguf") and not name.startswith("mmproj"))
    return frozenset(_GGUF_PART.sub(".gguf", name) for name in files)


def _layout(path: Path, names: frozenset[str]) -> str | None:
    if "adapter_config.json" in names and not _weight_files(names):
        base = _read_json(path / "adapter_config.json").get("base_model_name_or_path")
        return (
            f"it is a LoRA adapter of {base!r}, not a complete model: serve that model with "
            "enable_lora and lora_modules, or merge them."
        )
    if "config.json" in names:
        return None
    if "model_index.json" in names:
        return (
            "it is a diffusion pipeline (model_index.json), which doesn't generate text: serve it with a "
            "command (`engine: command`)."
        )
    if any(name.endswith(".gguf") for name in names):
        return _GGUF
    if "params.json" in names:
        return f"it is in its maker's own format (params.json), not Hugging Face's: {_VLLM}."
    unfinished = any(name.endswith(".safetensors") for name in names)
    return "it has no config.json: " + (
        _UNFINISHED if unfinished else "it is not a model in Hugging Face layout."
    )


def _architecture(path: Path, raw: Mapping[str, Any], params: Mapping[str, Any]) -> str | None:
    named = raw.get("architectures")
    if not isinstance(named, list) or len(named) != 1:
        return f"config.json: architectures is {named!r}; it must be a list with one name: {_VLLM}."
    name = str(named[0])
    pools, is_native = pools_by_flags_or_files(path, name, params), params.get("model_impl") == "native"
    if name not in ENCODERS and not is_native and name.endswith((*_MAY_POOL, *_MAY_GENERATE)):
        return None  # transformers may know it
    own, others = (ENCODERS | DECODERS, _MAY_POOL) if pools else (GENERATING, _MAY_GENERATE)
    if is_native and name not in own and name.endswith(others):
        return (
            f"--model-impl native: this engine has no class of its own for {name}. Leave the flag out: "
            "transformers' code may run it."
        )
    if pools and name not in ENCODERS | DECODERS:
        return (
            f"Architecture {name!r} isn't supported by the pooling runner, which runs decoders, and the "
            f"encoders that docs/models.md lists: {_VLLM}."
        )
    if name not in GENERATING | ENCODERS | DECODERS:
        return (
            f"Architecture {name!r} isn't supported by the embedded engine, which runs models that generate, "
            f"embed or classify text (docs/models.md lists them): {_VLLM}."
        )
    return None if name in ENCODERS else _feature(name, raw)


def pools_by_flags_or_files(path: Path, name: str, params: Mapping[str, Any]) -> bool:
    if params.get("runner") == "generate":
        return False
    if params.get("runner") == "pooling" or params.get("convert") in ("embed", "classify"):
        return True
    try:
        return "Pooling" in (path / "modules.json").read_text(encoding="utf-8")  # sentence-transformers'
    except (OSError, UnicodeDecodeError):
        return name not in GENERATING and name.endswith(_HEADLESS) and not name.endswith("LMHeadModel")


def has_no_language_head(name: str) -> bool:
    """As far as the architecture's name tells."""
    if name in GENERATING | ENCODERS | DECODERS:
        return name not in GENERATING
    return name.endswith(("ForSequenceClassification", "Model")) and not name.endswith("LMHeadModel")


def _feature(name: str, raw: Mapping[str, Any]) -> str | None:
    """Features that a decoder's configuration may require and the engine's own class lacks."""
    activation = raw.get("hidden_act") or "silu"
    rope: Mapping[str, Any] = next(
        (raw[k] for k in ("rope_parameters", "rope_scaling") if isinstance(raw.get(k), dict)), {}
    )
    kind = next((str(rope[key]) for key in ("rope_type", "type") if rope.get(key) is not None), "default")
    other = min(set(map(str, raw.get("layer_types") or ())) - _LAYER_TYPES, default="")
    problems = {
        f"Activation {activation!r} isn't supported; 'silu' is": (
            activation != "silu" and not name.startswith("Gemma3")
        ),
        "Partial rotary embeddings (partial_rotary_factor) aren't supported": (
            (raw.get("partial_rotary_factor") or 1.0) != 1.0 and not name.startswith("Phi3")
        ),
        f"Layers of type {other!r} aren't supported; full_attention and sliding_attention are": bool(other),
        f"RoPE scaling {kind!r} isn't supported; {', '.join(_ROPE_KINDS)} are": (
            kind not in (*_ROPE_KINDS, "su", "mrope")
        ),
    }
    first = next((problem for problem, there in problems.items() if there), None)
    return None if first is None else f"{first}: {_VLLM}."


def _weights(path: Path, names: frozenset[str]) -> str | None:
    if "model.safetensors.index.json" in names:
        weight_map = _read_json(path / "model.safetensors.index.json").get("weight_map")
        needed = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        source = "its index names"
    else:
        needed = _weight_files(names)
        needed += [name for name in _shards(needed) if name not in needed]
        source = "the others' names tell of"
        if not needed:
            return _weightless(names)
    if absent := [name for name in needed if not (path / name).exists()]:
        return f"it lacks {_enumerate(absent)}, which {source}: {_UNFINISHED}"
    for name in needed:
        if _is_lfs_pointer(path / name):
            return f"it has a Git LFS pointer in place of {name}: `git lfs pull` fetches it."
    return None


def _weightless(names: frozenset[str]) -> str:
    ends = (".bin", ".pt", ".pth")
    if pickled := sorted(name for name in names if name.endswith(ends) and name not in _NOT_WEIGHTS):
        return (
            f"it has no .safetensors file, but pickled weights ({_enumerate(pickled)}), which may run code "
            f"when they are read: convert them to safetensors, or {_VLLM}."
        )
    if any(name.endswith(".gguf") for name in names):
        return _GGUF
    return f"it has no .safetensors file: it contains no weights, or {_UNFINISHED.replace('its', 'their')}"


def _tokenizer(names: frozenset[str], params: Mapping[str, Any]) -> str | None:
    if params.get("tokenizer") or names & _TOKENIZERS:
        return None
    if any(name.endswith((".model", ".tiktoken")) for name in names):
        return None
    return "it has no tokenizer: neither tokenizer.json nor another known file."


def _weight_files(names: frozenset[str]) -> list[str]:
    """Weight files where no index names them; adapters may lie beside them and don't count."""
    if "model.safetensors" in names:
        return ["model.safetensors"]
    return sorted(n for n in names if n.endswith(".safetensors") and not n.startswith("adapter_"))


def _shards(names: Sequence[str]) -> list[str]:
    """All shards of the set that these names belong to."""
    match = next((match for name in names if (match := _SHARD.fullmatch(name))), None)
    if match is None:
        return []
    width, total = len(match[2]), min(int(match[3]), 10_000)
    return [f"{match[1]}-{number:0{width}}-of-{match[3]}.safetensors" for number in range(1, total + 1)]


def _is_lfs_pointer(path: Path) -> bool:
    try:
        return path.stat().st_size <= _POINTER_BYTES and path.read_bytes().startswith(
            b"version https://git-lfs"
        )
    except OSError:
        return False


def _enumerate(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def with_overrides(raw: Mapping[str, Any], overrides: object) -> Mapping[str, Any]:
    """config.json with --hf-overrides applied, a multimodal model's text_config spread over it."""
    merged = _merged(raw, overrides)
    if isinstance(inner := merged.get("text_config"), dict):
        known = {key: value for key, value in inner.items() if value is not None and key != "architectures"}
        merged = _merged({**merged, **known}, overrides)
    return merged


def _merged(raw: Mapping[str, Any], overrides: object) -> Mapping[str, Any]:
    if isinstance(overrides, str):
        try:
            overrides = json.loads(overrides)
        except ValueError:
            return raw
    if not isinstance(overrides, Mapping):
        return raw
    merged = dict(raw)
    for key, value in overrides.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
