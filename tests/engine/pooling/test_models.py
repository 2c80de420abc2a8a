"""Every architecture that pools, against plain transformers: alone, and in a batch of mixed lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from engine.config import EngineConfig
from engine.errors import CheckpointError
from engine.pooling.build import PoolingCore, build_pooling_core
from engine.pooling.plan import read_pooling_plan
from engine.pooling.types import PoolingRequest
from engine.text.tokenizer import load_tokenizer
from tests.engine.pooling.tiny_poolers import CONTEXT, hidden_of, logits_of, make_pooler, write_modules
from tests.engine.tiny_models import prompt_of

TOLERANCE = 1e-4
LENGTHS = (1, 7, 7, 30, 30, 12, 2, CONTEXT)
INPUTS = [prompt_of(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="session")
def pooler(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a checkpoint by its recipe's name."""
    root = tmp_path_factory.mktemp("poolers")
    return cache(lambda name: make_pooler(name, root))


def core_of(directory: Path, **options: Any) -> PoolingCore:
    settings: dict[str, Any] = {"dtype": "float32", "device": "cpu", "num_threads": 1, **options}
    config = EngineConfig(model=directory, **settings)
    return build_pooling_core(config, read_pooling_plan(config), lambda: load_tokenizer(directory))


def run(core: PoolingCore, inputs: Sequence[Sequence[int]], **options: Any) -> list[torch.Tensor]:
    """Through the batcher, as the engine does; the values of each input, in order."""
    for index, token_ids in enumerate(inputs):
        request = PoolingRequest(request_id=str(index), token_ids=token_ids, arrival_time=0.0, **options)
        core.batcher.add(request)
    values: dict[int, torch.Tensor] = {}
    while batch := core.batcher.next_batch():
        for request, value in zip(batch, core.runner.run(batch), strict=True):
            values[int(request.request_id)] = torch.tensor(value.tolist())
    return [values[index] for index in range(len(inputs))]


def check(core: PoolingCore, expected: Sequence[torch.Tensor], **options: Any) -> None:
    batched = run(core, INPUTS, **options)
    alone = [run(core, [token_ids], **options)[0] for token_ids in INPUTS]
    for ours, single, theirs in zip(batched, alone, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < TOLERANCE
        assert (single - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", ["bert", "bert-gelu-new", "bert-masked", "roberta", "xlm-roberta"])
def test_an_encoder_embeds_by_its_first_token(name: str, pooler: Callable[[str], Path]) -> None:
    directory = pooler(name)
    check(core_of(directory), [F.normalize(hidden_of(directory, one)[0], dim=0) for one in INPUTS])


@pytest.mark.parametrize("name", ["qwen3", "qwen3-untied", "qwen3-bare"])
def test_a_decoder_embeds_by_its_last_token(name: str, pooler: Callable[[str], Path]) -> None:
    directory = pooler(name)
    core = core_of(directory, runner="pooling")
    check(core, [F.normalize(hidden_of(directory, one)[-1], dim=0) for one in INPUTS])


@pytest.mark.parametrize("name", ["bert", "qwen3"])
@pytest.mark.parametrize("normalize", [True, False])
def test_sentence_transformers_files_decide_how_to_pool(name: str, normalize: bool, tmp_path: Path) -> None:
    directory = write_modules(make_pooler(name, tmp_path), "mean_tokens", normalize=normalize)
    expected = [hidden_of(directory, one).mean(dim=0) for one in INPUTS]
    core = core_of(directory)
    check(core, [F.normalize(one, dim=0) for one in expected], use_activation=True)
    check(core, expected, use_activation=False)
    config = EngineConfig(model=directory)
    assert read_pooling_plan(config).use_activation is normalize


def test_a_dense_module_projects(tmp_path: Path) -> None:
    import json

    from safetensors.torch import save_file

    directory = write_modules(make_pooler("bert", tmp_path), "cls_token")
    modules = json.loads((directory / "modules.json").read_text())
    modules.insert(
        2, {"idx": 9, "name": "d", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    )
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "2_Dense").mkdir()
    sizes = {"in_features": 32, "out_features": 12, "activation_function": "torch.nn.modules.activation.Tanh"}
    (directory / "2_Dense" / "config.json").write_text(json.dumps(sizes))
    weight, bias = torch.randn(12, 32), torch.randn(12)
    save_file({"linear.weight": weight, "linear.bias": bias}, directory / "2_Dense" / "model.safetensors")
    pooled = [hidden_of(directory, one)[0] for one in INPUTS]
    expected = [F.normalize(torch.tanh(F.linear(one, weight, bias)), dim=0) for one in pooled]
    check(core_of(directory), expected)


def test_dimensions_are_truncated_before_normalisation(pooler: Callable[[str], Path]) -> None:
    directory = pooler("bert")
    expected = [F.normalize(hidden_of(directory, one)[0][:8], dim=0) for one in INPUTS]
    check(core_of(directory), expected, dimensions=8)


def test_one_batch_may_have_different_options(pooler: Callable[[str], Path]) -> None:
    core = core_of(pooler("bert"))
    [whole] = run(core, INPUTS[:1], use_activation=False)
    plain = PoolingRequest(request_id="a", token_ids=INPUTS[0], use_activation=False, arrival_time=0.0)
    short = PoolingRequest(request_id="b", token_ids=INPUTS[0], dimensions=4, arrival_time=0.0)
    first, second = core.runner.run([plain, short])
    assert (torch.tensor(first.tolist()) - whole).abs().max() < TOLERANCE
    assert (torch.tensor(second.tolist()) - F.normalize(whole[:4], dim=0)).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", ["bert-cross", "xlm-cross", "qwen3-cross"])
def test_a_classifier_of_one_label_gives_a_sigmoid(name: str, pooler: Callable[[str], Path]) -> None:
    directory = pooler(name)
    logits = [logits_of(directory, one) for one in INPUTS]
    core = core_of(directory)
    check(core, [one.sigmoid() for one in logits])
    check(core, logits, use_activation=False)


@pytest.mark.parametrize("name", ["bert-three", "roberta-two", "llama-three"])
def test_a_classifier_of_several_labels_gives_a_softmax(name: str, pooler: Callable[[str], Path]) -> None:
    directory = pooler(name)
    check(core_of(directory), [logits_of(directory, one).softmax(dim=0) for one in INPUTS])


def test_the_second_text_of_a_pair_is_marked(pooler: Callable[[str], Path]) -> None:
    directory = pooler("bert-cross")
    token_ids, type_ids = prompt_of(9), [0] * 4 + [1] * 5
    core = core_of(directory)
    [marked] = run(core, [token_ids], type_ids=type_ids)
    [unmarked] = run(core, [token_ids])
    assert (marked - logits_of(directory, token_ids, type_ids).sigmoid()).abs() < TOLERANCE
    assert (marked - unmarked).abs() > TOLERANCE


def test_logits_may_be_calibrated(pooler: Callable[[str], Path]) -> None:
    directory = pooler("bert-cross")
    core = core_of(directory, pooler_config={"logit_mean": 0.5, "logit_sigma": 2.0})
    check(core, [((logits_of(directory, one) - 0.5) / 2).sigmoid() for one in INPUTS])


@pytest.mark.parametrize("name", ["qwen3", "qwen3-untied"])
def test_a_reranker_is_built_from_two_rows_of_the_language_head(
    name: str, pooler: Callable[[str], Path]
) -> None:
    from transformers import AutoModelForCausalLM

    directory = pooler(name)
    tokenizer = load_tokenizer(directory)
    no, yes = (tokenizer.fast.token_to_id(token) for token in ("a", "b"))
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["a", "b"],
        "is_original_qwen3_reranker": True,
    }
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    expected = []
    with torch.inference_mode():
        for one in INPUTS:
            logits = model(torch.tensor([one])).logits[0, -1]
            expected.append(logits[[no, yes]].softmax(dim=0)[1:])
    check(core_of(directory, hf_overrides=overrides), expected)


def test_a_classifier_token_must_be_in_the_vocabulary(pooler: Callable[[str], Path]) -> None:
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["a", "maybe"],
        "is_original_qwen3_reranker": True,
    }
    with pytest.raises(CheckpointError, match="'maybe' is not a token"):
        core_of(pooler("qwen3"), hf_overrides=overrides)


def test_bfloat16_is_close_to_float32(pooler: Callable[[str], Path]) -> None:
    directory = pooler("bert")
    for ours, one in zip(run(core_of(directory, dtype="bfloat16"), INPUTS), INPUTS, strict=True):
        assert F.cosine_similarity(ours, hidden_of(directory, one)[0], dim=0) > 0.99


def test_sequences_smaller_than_a_block_fit_into_the_cache(pooler: Callable[[str], Path]) -> None:
    """The largest number of sequences in a batch, each of which uses a block without filling it."""
    directory = pooler("qwen3")
    core = core_of(directory, runner="pooling", max_num_seqs=3, max_num_batched_tokens=16, block_size=16)
    check(core, [F.normalize(hidden_of(directory, one)[-1], dim=0) for one in INPUTS])


def test_an_overflow_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = make_pooler("bert-cross", tmp_path)
    weights = load_file(directory / "model.safetensors")
    weights["classifier.bias"].fill_(float("inf"))
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(ArithmeticError, match="not finite"):
        core_of(directory)  # its first run warms it up
