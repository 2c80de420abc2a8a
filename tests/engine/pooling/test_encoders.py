"""The encoders beside BERT and RoBERTa, against plain transformers or a reference of our own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from engine.config import EngineConfig
from engine.errors import UnsupportedModel
from engine.models.architecture import EncoderArchitecture
from engine.models.pooling_type import PoolingType
from engine.models.registry import ARCHITECTURES
from engine.pooling.plan import read_pooling_plan
from tests.engine.pooling.jina_bert import JinaBertReference, make_jina_bert
from tests.engine.pooling.serving import pooling
from tests.engine.pooling.test_models import INPUTS, check, core_of
from tests.engine.pooling.tiny_poolers import (
    CONTEXT,
    RECIPES,
    hidden_of,
    logits_of,
    make_pooler,
    write_modules,
)

TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a checkpoint by its recipe's name."""
    root = tmp_path_factory.mktemp("encoders")

    @cache
    def make(name: str) -> Path:
        if not hasattr(transformers, RECIPES[name][0]):
            pytest.skip(f"this version of transformers has no {RECIPES[name][0]}")
        return make_pooler(name, root)

    return make


def rewritten(directory: Path, **config: Any) -> Path:
    """The same weights under another config.json."""
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    "name",
    [
        "camembert",
        "electra",
        "electra-pretraining",
        "distilbert",
        "distilbert-masked",
        "mpnet",
        "modernbert",
        "modernbert-masked",
        "modernbert-biased",
        "nomic",
        "gte",
        "gte-without-types",
        "jina-v3",
    ],
)
def test_embeddings_equal_those_of_transformers(name: str, encoder: Callable[[str], Path]) -> None:
    directory = encoder(name)
    check(core_of(directory), [F.normalize(hidden_of(directory, one)[0], dim=0) for one in INPUTS])


@pytest.mark.parametrize(
    "name",
    ["distilbert-cross", "mpnet-cross", "modernbert-cross", "nomic-cross", "gte-cross"],
)
def test_a_classifier_of_one_label_equals_that_of_transformers(
    name: str, encoder: Callable[[str], Path]
) -> None:
    directory = encoder(name)
    check(core_of(directory), [logits_of(directory, one).sigmoid() for one in INPUTS])


@pytest.mark.parametrize("name", ["electra-two", "modernbert-mean", "jina-v3-two"])
def test_a_classifier_of_two_labels_equals_that_of_transformers(
    name: str, encoder: Callable[[str], Path]
) -> None:
    directory = encoder(name)
    check(core_of(directory), [logits_of(directory, one).softmax(dim=0) for one in INPUTS])


def test_a_mean_over_all_tokens(tmp_path: Path) -> None:
    directory = write_modules(make_pooler("modernbert", tmp_path), "mean_tokens")
    check(core_of(directory), [F.normalize(hidden_of(directory, one).mean(dim=0), dim=0) for one in INPUTS])


def test_modernbert_under_the_keys_of_older_checkpoints(
    tmp_path: Path, encoder: Callable[[str], Path]
) -> None:
    original = encoder("modernbert")
    directory = make_pooler("modernbert", tmp_path, layer_types=None, rope_parameters=None)
    raw = json.loads((directory / "config.json").read_text())
    rewritten(
        directory, **raw, global_attn_every_n_layers=3, global_rope_theta=160000.0, local_rope_theta=10000.0
    )
    check(core_of(directory), [F.normalize(hidden_of(original, one)[0], dim=0) for one in INPUTS])


def test_nomic_under_its_own_keys(tmp_path: Path, encoder: Callable[[str], Path]) -> None:
    original = encoder("nomic")
    directory = rewritten(
        make_pooler("nomic", tmp_path),
        architectures=["NomicBertModel"],
        activation_function="swiglu",
        layer_norm_epsilon=1e-12,
        max_trained_positions=CONTEXT,
        mlp_fc1_bias=False,
        mlp_fc2_bias=False,
        n_embd=32,
        n_head=4,
        n_inner=48,
        n_layer=2,
        n_positions=8192,
        prenorm=False,
        qkv_proj_bias=False,
        rotary_emb_base=1000,
        rotary_emb_fraction=1.0,
        rotary_emb_interleaved=False,
        rotary_scaling_factor=None,
        type_vocab_size=2,
        vocab_size=320,
    )
    check(core_of(directory), [F.normalize(hidden_of(original, one)[0], dim=0) for one in INPUTS])
    assert read_pooling_plan(EngineConfig(model=directory)).max_model_len == CONTEXT


def new_model(directory: Path, **config: Any) -> Path:
    """A GTE checkpoint as its own code saves it."""
    raw = json.loads((directory / "config.json").read_text())
    own = {
        "architectures": ["NewModel"],
        "model_type": "new",
        "position_embedding_type": "rope",
        "pack_qkv": True,
    }
    del raw["rope_parameters"]
    return rewritten(directory, **{**raw, **own, **config})


def test_gte_under_its_own_keys(tmp_path: Path, encoder: Callable[[str], Path]) -> None:
    original = encoder("gte")
    directory = new_model(make_pooler("gte", tmp_path), rope_theta=160_000.0, rope_scaling=None)
    check(core_of(directory), [F.normalize(hidden_of(original, one)[0], dim=0) for one in INPUTS])


@torch.inference_mode()
def test_gte_with_a_scaled_rotation(tmp_path: Path, encoder: Callable[[str], Path]) -> None:
    """Fixed NTK scaling: theta grows by the factor, and frequencies shrink by its power of 2 / head_dim."""
    theta, factor, head_dim = 500.0, 8.0, 8
    model: Any = transformers.AutoModel.from_pretrained(encoder("gte"), dtype=torch.float32)
    exponents = torch.arange(0, head_dim, 2).float() / head_dim
    model.rotary_emb.inv_freq.copy_(1 / (theta * factor) ** exponents / factor ** (2 / head_dim))
    expected = [model(torch.tensor([one])).last_hidden_state[0, 0] for one in INPUTS]
    directory = new_model(
        make_pooler("gte", tmp_path), rope_theta=theta, rope_scaling={"type": "ntk", "factor": factor}
    )
    check(core_of(directory), [F.normalize(one, dim=0) for one in expected])


@pytest.mark.parametrize("qk_norm", [False, True])
def test_jina_embeddings_2(qk_norm: bool, tmp_path: Path) -> None:
    directory = make_jina_bert(tmp_path / "jina", qk_norm=qk_norm)
    reference = JinaBertReference(directory)
    check(core_of(directory), [F.normalize(reference.hidden(one).mean(dim=0), dim=0) for one in INPUTS])
    assert read_pooling_plan(EngineConfig(model=directory)).pooling is PoolingType.MEAN


def test_a_jina_reranker(tmp_path: Path) -> None:
    directory = make_jina_bert(tmp_path / "jina", num_labels=1)
    reference = JinaBertReference(directory)
    check(core_of(directory), [reference.logits(one).sigmoid() for one in INPUTS])


@pytest.mark.parametrize("layout", ["as transformers loads them", "as they are saved"])
@pytest.mark.parametrize("name", ["nomic", "gte", "jina-v3"])
def test_both_layouts_of_tensors_load(name: str, layout: str, tmp_path: Path) -> None:
    """Some savers divide the fused projections, others leave them."""
    from safetensors.torch import save_file

    directory = make_pooler(name, tmp_path)
    expected = [F.normalize(hidden_of(directory, one)[0], dim=0) for one in INPUTS]
    if layout == "as transformers loads them":
        model: Any = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32)
        weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        save_file(weights, directory / "model.safetensors")
    check(core_of(directory), expected)


def test_embeddings_over_http(tmp_path: Path) -> None:
    directory = write_modules(make_pooler("modernbert", tmp_path), "cls_token")
    with pooling(directory, engine={"dtype": "float32"}) as server, server.http() as client:
        answer = client.post("/v1/embeddings", json={"input": INPUTS}).json()
    for item, one in zip(answer["data"], INPUTS, strict=True):
        expected = F.normalize(hidden_of(directory, one)[0], dim=0)
        assert (torch.tensor(item["embedding"]) - expected).abs().max() < TOLERANCE


def test_the_documented_encoders_are_those_that_run() -> None:
    page = Path(__file__).parents[3].joinpath("docs", "models.md").read_text(encoding="utf-8")
    names = [name for name, one in ARCHITECTURES.items() if isinstance(one, EncoderArchitecture)]
    families = {name.removesuffix(str(ARCHITECTURES[name].head)) for name in names}
    documented = set(re.findall(r"`(\w+)…`", page.split("### Embedding models and rerankers")[1]))
    assert families == documented - {"EuroBert", "LlamaBidirectional"}


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("xlm-roberta", {"lora_adaptations": ["retrieval.query"]}, "Task adapters inside a checkpoint"),
        ("nomic", {"moe_every_n_layers": 2}, "moe_every_n_layers 2"),
        ("nomic", {"rotary_emb_fraction": 0.5}, r"rotary_emb_fraction 0\.5"),
        ("nomic", {"rotary_scaling_factor": 2}, "rotary_scaling_factor 2"),
        ("gte", {"position_embedding_type": "absolute"}, "positions of kind 'absolute'"),
        ("gte", {"rope_parameters": {"rope_type": "yarn"}}, "RoPE scaling 'yarn'"),
        ("gte", {"rope_parameters": {"type": "ntk", "factor": 2.0, "mixed_b": 1}}, "mixed_b"),
        ("gte", {"layer_norm_type": "rms_norm"}, "rms_norm"),
        ("modernbert", {"layer_types": ["chunked_attention"] * 4}, "'chunked_attention'"),
        ("modernbert", {"classifier_pooling": "late"}, "classifier_pooling 'late'"),
        ("mpnet", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets"),
        ("electra", {"hidden_act": "mish"}, "Activation 'mish'"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    name: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    directory = make_pooler(name, tmp_path, **config)
    with pytest.raises(UnsupportedModel, match=message):
        read_pooling_plan(EngineConfig(model=directory))
