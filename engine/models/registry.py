"""The architectures by their names in config.json: a family of models takes one line. Knows nothing of torch.

The family's module has its class. One whose config.json differs from Llama's also says how to read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from engine.errors import UnsupportedModel
from engine.models.architecture import Architecture, DecoderArchitecture, EncoderArchitecture, SavedHead
from engine.models.config import ConfigFile
from engine.models.decoder_config import DecoderConfig
from engine.models.encoder_config import EncoderFamily, read_encoder_config
from engine.models.encoder_families import (
    BERT,
    DISTILBERT,
    ELECTRA,
    GTE,
    JINA_BERT,
    JINA_V3,
    MODERNBERT,
    MPNET,
    NOMIC,
    ROBERTA,
)
from engine.models.family_configs import (
    read_gemma3,
    read_granite,
    read_llama,
    read_ministral,
    read_mistral,
    read_olmo2,
    read_olmo3,
    read_phi3,
    read_qwen2,
    read_qwen3,
    read_qwen3_moe,
    read_smollm3,
)

ReadsDecoder: TypeAlias = Callable[[ConfigFile], DecoderConfig]


def decoders(
    family: str,
    model_class: str,
    *,
    reads: ReadsDecoder = read_llama,
    pools: bool = True,
    pools_as: str | None = None,
    only: tuple[SavedHead, ...] = (),
    looks_both_ways: bool = False,
) -> Iterator[Architecture]:
    """A family of decoders. `pools`: whether it can also be an embedding model or a classifier.

    `pools_as`: the family's name in the names of these, if it is another. `only`: the heads that there are,
    if not those of most families.
    """

    def read_config(directory: Path, overrides: Mapping[str, Any] | None = None) -> DecoderConfig:
        return reads(ConfigFile.open(directory, overrides))

    pooling_heads = (SavedHead.NONE, SavedHead.CLASSIFIER) if pools else ()
    for head in only or (SavedHead.CAUSAL_LM, *pooling_heads):
        name = family if head is SavedHead.CAUSAL_LM else pools_as or family
        yield DecoderArchitecture(
            name=f"{name}{head}",
            head=head,
            model_class=model_class,
            pools=pools,
            read_config=read_config,
            looks_both_ways=looks_both_ways,
        )


def encoders(
    name: str, family: EncoderFamily, model_class: str = "engine.models.bert:Encoder"
) -> Iterator[Architecture]:
    for head in (SavedHead.NONE, SavedHead.MASKED_LM, SavedHead.PRETRAINING, SavedHead.CLASSIFIER):
        yield EncoderArchitecture(
            name=f"{name}{head}",
            head=head,
            model_class=model_class,
            read_config=partial(read_encoder_config, family),
        )


_LLAMA = "engine.models.llama:LlamaForCausalLM"
_FAMILIES = (
    decoders("Llama", _LLAMA),
    decoders("Qwen2", _LLAMA, reads=read_qwen2),
    decoders("Qwen3", "engine.models.qwen3:Qwen3ForCausalLM", reads=read_qwen3),
    decoders("Qwen3Moe", "engine.models.qwen3_moe:Qwen3MoeForCausalLM", reads=read_qwen3_moe),
    decoders("Mistral", _LLAMA, reads=read_mistral),
    decoders("Ministral", _LLAMA, reads=read_ministral),
    decoders("Phi3", "engine.models.phi3:Phi3ForCausalLM", reads=read_phi3),
    decoders("Gemma3", "engine.models.gemma3:Gemma3ForCausalLM", reads=read_gemma3, pools_as="Gemma3Text"),
    decoders("SmolLM3", _LLAMA, reads=read_smollm3),
    decoders("Granite", "engine.models.granite:GraniteForCausalLM", reads=read_granite),
    decoders("Olmo2", "engine.models.olmo:OlmoForCausalLM", reads=read_olmo2),
    decoders("Olmo3", "engine.models.olmo:OlmoForCausalLM", reads=read_olmo3),
    decoders("EuroBert", _LLAMA, only=(SavedHead.NONE, SavedHead.MASKED_LM), looks_both_ways=True),
    decoders("LlamaBidirectional", _LLAMA, only=(SavedHead.NONE, SavedHead.CLASSIFIER), looks_both_ways=True),
    encoders("Bert", BERT),
    encoders("Roberta", ROBERTA),
    encoders("XLMRoberta", ROBERTA),
    encoders("Camembert", ROBERTA),
    encoders("DistilBert", DISTILBERT),
    encoders("Electra", ELECTRA),
    encoders("MPNet", MPNET),
    encoders("NomicBert", NOMIC),
    encoders("New", GTE),  # GTE's own code
    encoders("Gte", GTE),
    encoders("JinaBert", JINA_BERT),
    encoders("JinaEmbeddingsV3", JINA_V3),
    encoders("ModernBert", MODERNBERT, "engine.models.modernbert:ModernBert"),
)
ARCHITECTURES = {architecture.name: architecture for family in _FAMILIES for architecture in family}


def generating_architecture(name: str) -> DecoderArchitecture:
    """One with a class of the engine's own. Raises UnsupportedModel."""
    found = ARCHITECTURES.get(name)
    if isinstance(found, DecoderArchitecture) and found.generates:
        return found
    raise UnsupportedModel(
        f"Architecture {name!r} isn't supported by the embedded engine, which runs models that generate, "
        "embed or classify text (docs/models.md lists them)."
    )


def pooling_architecture(name: str) -> Architecture:
    """One with a class of the engine's own. Raises UnsupportedModel."""
    found = ARCHITECTURES.get(name)
    if found is not None and found.pools:
        return found
    raise UnsupportedModel(
        f"Architecture {name!r} isn't supported by the pooling runner, which runs decoders, and the encoders "
        "that docs/models.md lists."
    )
