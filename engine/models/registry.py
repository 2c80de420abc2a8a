"""The architectures by their names in config.json: a family of models takes one line. Knows nothing of torch.

The family's module has its class. One whose config.json differs also gives its own `read_config`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from engine.errors import UnsupportedModel
from engine.models.architecture import Architecture, DecoderArchitecture, EncoderArchitecture, SavedHead
from engine.models.config import ModelConfig, read_model_config
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


def decoders(
    family: str,
    model_class: str,
    *,
    read_config: Callable[[Path, Mapping[str, Any] | None], ModelConfig] = read_model_config,
    pools: bool = True,
) -> Iterator[Architecture]:
    """A family of decoders. `pools`: whether it can also be an embedding model or a classifier."""
    pooling_heads = (SavedHead.NONE, SavedHead.CLASSIFIER) if pools else ()
    for head in (SavedHead.CAUSAL_LM, *pooling_heads):
        yield DecoderArchitecture(
            name=f"{family}{head}", head=head, model_class=model_class, pools=pools, read_config=read_config
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


_FAMILIES = (
    decoders("Llama", "engine.models.llama:LlamaForCausalLM"),
    decoders("Qwen3", "engine.models.qwen3:Qwen3ForCausalLM"),
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
    """Raises UnsupportedModel, naming those that can generate text."""
    found = ARCHITECTURES.get(name)
    if isinstance(found, DecoderArchitecture) and found.generates:
        return found
    known = sorted(name for name, other in ARCHITECTURES.items() if other.generates)
    raise UnsupportedModel(
        f"Architecture {name!r} isn't supported by the embedded engine, which runs {', '.join(known)}."
    )


def pooling_architecture(name: str) -> Architecture:
    """Raises UnsupportedModel, naming those that the pooling runner supports."""
    found = ARCHITECTURES.get(name)
    if found is not None and found.pools:
        return found
    known = sorted(name for name, other in ARCHITECTURES.items() if other.pools)
    raise UnsupportedModel(
        f"Architecture {name!r} isn't supported by the pooling runner; supported are {', '.join(known)}."
    )
