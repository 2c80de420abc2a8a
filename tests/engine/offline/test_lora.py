"""A LoRA adapter gives what its model with the adapter merged in gives, whatever shares the batch."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import LLM, LoRARequest, SamplingParams
from engine.errors import ConfigError, InvalidRequest
from tests.engine.offline.lora_files import ALL, ATTENTION, merge, write_adapter
from tests.engine.server.tokenizers_for_tests import byte_level_tokenizer, write_tokenizer_files

FLAGS: dict[str, Any] = {
    "device": "cpu",
    "num_threads": 1,
    "dtype": "float32",
    "max_model_len": 128,
    "max_num_batched_tokens": 32,  # so that prompts run in chunks
    "max_num_seqs": 8,
    "max_logprobs": -1,
}
TEXTS = ["a fox", "a dog and a fox, and so on and so forth: a longer text", "nothing", "a fox"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"targets": ALL, "rank": 4},
    "attention": {"targets": ATTENTION, "rank": 8, "use_rslora": True, "seed": 1},
    "values": {"targets": ("v_proj", "down_proj"), "rank": 2, "lora_alpha": 3, "seed": 2},
}


@pytest.fixture(scope="module", params=["qwen3-tied", "llama-untied-bias"])
def base(
    request: pytest.FixtureRequest,
    checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    directory = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(checkpoint(request.param), directory)
    return write_tokenizer_files(directory, byte_level_tokenizer())


@pytest.fixture(scope="module")
def paths(base: Path) -> dict[str, Path]:
    return {name: write_adapter(base, base.parent / name, **given) for name, given in ADAPTERS.items()}


@pytest.fixture(scope="module")
def llm(base: Path, paths: dict[str, Path]) -> Iterator[LLM]:
    with LLM(base, **FLAGS, enable_lora=True) as llm:
        yield llm


def ask(llm: LLM, texts: Any, lora: Any = None) -> list[Any]:
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=-1, prompt_logprobs=0)
    outputs: list[Any] = llm.generate(texts, params, use_tqdm=False, lora_request=lora)
    return outputs


def assert_same(outputs: list[Any], wanted: list[Any], tolerance: float = 1e-4) -> None:
    for output, reference in zip(outputs, wanted, strict=True):
        assert output["token_ids"] == reference["token_ids"]
        pairs = zip(output.outputs[0].logprobs, reference.outputs[0].logprobs, strict=True)
        for position, expected in pairs:
            ours = [position[token].logprob for token in sorted(position)]
            assert ours == pytest.approx(
                [expected[token].logprob for token in sorted(expected)], abs=tolerance
            )


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_equals_its_merged_model(llm: LLM, base: Path, paths: dict[str, Path], name: str) -> None:
    outputs = ask(llm, TEXTS, LoRARequest(name, 1, str(paths[name])))
    with LLM(merge(base, paths[name], base.parent / f"merged-{name}"), **FLAGS) as merged:
        assert_same(outputs, ask(merged, TEXTS))
    plain = ask(llm, TEXTS)
    assert [one["token_ids"] for one in plain] != [one["token_ids"] for one in outputs]


def test_several_adapters_and_none_share_a_batch(llm: LLM, base: Path, paths: dict[str, Path]) -> None:
    """Also their prompts' beginnings are equal: no cached block of another adapter is used."""
    alone = {name: ask(llm, TEXTS[1], LoRARequest(name, 1, str(path)))[0] for name, path in paths.items()}
    with LLM(base, **FLAGS) as plain:
        wanted = ask(plain, [TEXTS[1]] * 2)
    llm.reset_prefix_cache()
    names = [*paths, *paths]
    service = llm._hosted.service
    mixed = ask(llm, [TEXTS[1]] * 6, [LoRARequest(name) for name in names])
    assert_same(mixed, [alone[name] for name in names])
    assert_same(ask(llm, [TEXTS[1]] * 2), wanted)
    assert_same(ask(llm, [TEXTS[1]] * 2, [None, LoRARequest(names[0])]), [wanted[0], alone[names[0]]])
    assert service.engine.num_unfinished == 0


def test_rows_without_an_adapter_are_the_models_own(llm: LLM, base: Path, paths: dict[str, Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with LLM(base, **FLAGS) as plain:
        wanted = ask(plain, TEXTS)
    with ThreadPoolExecutor(2) as threads:
        adapted = threads.submit(ask, llm, TEXTS, LoRARequest("all", 1, str(paths["all"])))
        assert_same(ask(llm, TEXTS), wanted)
        assert len(adapted.result()) == len(TEXTS)


def test_adapters_stay_over_a_sleep(llm: LLM, paths: dict[str, Path]) -> None:
    lora = LoRARequest("all", 1, str(paths["all"]))
    wanted = ask(llm, TEXTS, lora)
    for level in (1, 2):
        llm.sleep(level)
        llm.wake_up()
        assert_same(ask(llm, TEXTS, lora), wanted)


def test_an_adapter_that_was_replaced_has_no_cached_prompts(
    llm: LLM, base: Path, paths: dict[str, Path]
) -> None:
    other = write_adapter(base, base.parent / "other", seed=9)
    service: Any = llm._hosted.service
    before = ask(llm, TEXTS[1], LoRARequest("replaced", 1, str(paths["all"])))
    llm._call(lambda report: service.load_adapter("replaced", other, in_place=True))
    after = ask(llm, TEXTS[1], LoRARequest("replaced"))
    assert after[0].num_cached_tokens == 0
    assert_same(after, ask(llm, TEXTS[1], LoRARequest("other", 1, str(other))))
    assert after[0]["token_ids"] != before[0]["token_ids"]


def test_modules_may_be_named_by_a_pattern(llm: LLM, base: Path) -> None:
    pattern = r".*\.self_attn\.(q|v)_proj"
    path = write_adapter(base, base.parent / "pattern", targets=("q_proj", "v_proj"))
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": pattern}))
    by_list = write_adapter(base, base.parent / "by-list", targets=("q_proj", "v_proj"))
    outputs = ask(llm, TEXTS, LoRARequest("pattern", 1, str(path)))
    assert_same(outputs, ask(llm, TEXTS, LoRARequest("by-list", 1, str(by_list))))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\] is not supported"),
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights 'pissa_niter_16' is not supported"),
        ({"r": "x"}, "r is 'x'; it must be a number above 0"),
        ({"lora_alpha": math.inf}, "lora_alpha is inf; it must be a number above 0"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan; it must be a number above 0"),
        ({"lora_alpha": 10**400}, "lora_alpha is 10+; it must be a number above 0"),
        ({"rank_pattern": [1]}, r"rank_pattern is \[1\]; it must be an object of numbers"),
        ({"rank_pattern": {"((": 4}}, r"rank_pattern is '\(\('; it must be a regular expression, but"),
        ({"rank_pattern": {"q_proj": "4"}}, r"rank_pattern\['q_proj'\] is '4'; it must be a number"),
        ({"alpha_pattern": {"q_proj": None}}, r"alpha_pattern\['q_proj'\] is None; it must be a number"),
        ({"target_modules": 5}, "target_modules is 5; it must be a list of names"),
        ({"target_modules": [1]}, r"target_modules is \[1\]; it must be a list of names"),
        ({"target_modules": "(("}, r"target_modules is '\(\('; it must be a regular expression, but"),
        ({"r": 32}, "its rank is 32, and --max-lora-rank is 16"),
        ({"r": 2}, r"is \[4, .* instead of \[2, .*belongs to another model"),
        ({"target_modules": ["q_proj"]}, "which adapter_config.json doesn't name"),
        ({"target_modules": [*ALL, "norm", "mlp"]}, None),
    ],
)
def test_an_adapter_that_cannot_run_is_refused_by_name(
    llm: LLM, base: Path, tmp_path: Path, config: dict[str, Any], message: str | None
) -> None:
    path = write_adapter(base, tmp_path / "adapter")
    raw = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**raw, **config}))
    lora = LoRARequest(str(tmp_path), 1, str(path))
    if message is None:
        assert len(ask(llm, "a fox", lora)) == 1
        return
    with pytest.raises(InvalidRequest, match=message) as caught:
        ask(llm, "a fox", lora)
    assert caught.value.param == "lora_path"


def test_a_missing_adapter_is_named(llm: LLM, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="There is no directory"):
        ask(llm, "a fox", LoRARequest("gone", 1, str(tmp_path / "gone")))
    with pytest.raises(InvalidRequest, match=r"has no adapter_config\.json"):
        ask(llm, "a fox", LoRARequest("gone", 1, str(tmp_path)))
    with pytest.raises(InvalidRequest, match=r"'gone' can't be read: .*File name too long"):
        ask(llm, "a fox", LoRARequest("gone", 1, "x" * 5000))
    path = write_adapter(base, tmp_path / "pickled")
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(InvalidRequest, match=r"has no adapter_model\.safetensors"):
        ask(llm, "a fox", LoRARequest("gone", 1, str(path)))
    (path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(InvalidRequest, match=r"adapter_config\.json can't be read: .*recursion"):
        ask(llm, "a fox", LoRARequest("gone", 1, str(path)))


def test_an_adapter_of_whole_numbers_is_refused(llm: LLM, base: Path, tmp_path: Path) -> None:
    path = write_adapter(base, tmp_path / "whole")
    weights = path / "adapter_model.safetensors"
    save_file({name: tensor.to(torch.int32) for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(InvalidRequest, match=r"has values of torch\.int32, which aren't supported"):
        ask(llm, "a fox", LoRARequest("whole", 1, str(path)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_adapter_whose_values_are_no_numbers_is_refused(
    llm: LLM, base: Path, tmp_path: Path, value: float
) -> None:
    path = write_adapter(base, tmp_path / "broken")
    weights = path / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] = value
    save_file(tensors, weights)
    module = name.removeprefix("base_model.model.").partition(".lora_")[0]
    with pytest.raises(InvalidRequest, match=f"{module}.* has values that are no numbers, or too large"):
        ask(llm, "a fox", LoRARequest("broken", 1, str(path)))


def test_a_module_that_the_model_lacks_is_named(llm: LLM, base: Path, tmp_path: Path) -> None:
    path = write_adapter(base, tmp_path / "router", target_modules=["q_proj", "router"], targets=("q_proj",))
    weights = path / "adapter_model.safetensors"
    tensors = load_file(weights)
    for end in ("A", "B"):
        tensors[f"base_model.model.model.layers.0.router.lora_{end}.weight"] = torch.zeros(4, 4)
    save_file(tensors, weights)
    with pytest.raises(InvalidRequest, match=r"changes model\.layers\.0\.router: of this model"):
        ask(llm, "a fox", LoRARequest("router", 1, str(path)))


def test_pickled_weights_are_never_read(llm: LLM, base: Path, tmp_path: Path) -> None:
    """They would run code: here, one that leaves a file."""
    path, trace = write_adapter(base, tmp_path / "pickled"), tmp_path / "trace"
    (path / "adapter_model.safetensors").unlink()
    for name in ("adapter_model.bin", "adapter_model.pt"):
        (path / name).write_bytes(f"cos\nsystem\n(S'touch {trace}'\ntR.".encode())
    with pytest.raises(InvalidRequest, match=r"pickled weights \(adapter_model\.bin, adapter_model\.pt\)"):
        ask(llm, "a fox", LoRARequest("pickled", 1, str(path)))
    with pytest.raises(InvalidRequest, match=r"is a file; the adapter 'pickled' is the directory"):
        ask(llm, "a fox", LoRARequest("pickled", 1, str(path / "adapter_model.bin")))
    assert not trace.exists()


def test_adapters_of_the_command_line(base: Path, paths: dict[str, Path]) -> None:
    modules = [f"one={paths['all']}", {"name": "two", "path": str(paths["values"])}]
    with LLM(base, **FLAGS, lora_modules=modules) as llm:
        assert len(ask(llm, TEXTS[:2], [LoRARequest("one"), LoRARequest("two")])) == 2
    with pytest.raises(ConfigError, match="--lora-modules needs --enable-lora"):
        LLM(base, enable_lora=False, lora_modules=modules)
    before = threading.active_count()
    with pytest.raises(ConfigError, match="--lora-modules gone: There is no directory"):
        LLM(base, **FLAGS, enable_lora=True, lora_modules=["gone=/gone"])
    assert threading.active_count() == before
    with pytest.raises(ConfigError, match="neither NAME=PATH nor"):
        LLM(base, enable_lora=True, lora_modules=["gone"])
    with LLM(base, **FLAGS) as plain, pytest.raises(InvalidRequest, match="needs LLM"):
        ask(plain, "a fox", LoRARequest("one", 1, str(paths["all"])))


@pytest.fixture(scope="module")
def make_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        from tests.engine.families.recipes import build, save  # imports transformers, so only if needed

        directory = save(build(name), tmp_path_factory.mktemp("family") / name)
        return write_tokenizer_files(directory, byte_level_tokenizer())

    return make


@pytest.mark.parametrize("name", ["qwen2", "phi3", "granite", "olmo2", "gemma3_text"])
def test_native_families_take_adapters(make_family: Callable[[str], Path], name: str) -> None:
    """Also where the checkpoint stores several projections as one."""
    base = make_family(name)
    targets = [*ATTENTION, "qkv_proj", "gate_up_proj", "down_proj"]
    path = write_adapter(base, base.parent / "adapter", targets=targets)
    prompts = [[5, 9, 30, 7, 12, 40, 3], [8, 2]]
    with LLM(base, **FLAGS, enable_lora=True) as llm:
        outputs = ask(llm, prompts, LoRARequest("a", 1, str(path)))
        plain = ask(llm, prompts)
    with LLM(merge(base, path, base.parent / "merged"), **FLAGS) as merged:
        assert_same(outputs, ask(merged, prompts))
    assert outputs[0].outputs[0].cumulative_logprob != plain[0].outputs[0].cumulative_logprob


def test_a_model_that_transformers_computes_takes_none(base: Path) -> None:
    with pytest.raises(ConfigError, match="--enable-lora: transformers' own code computes"):
        LLM(base, **FLAGS, enable_lora=True, model_impl="transformers")
