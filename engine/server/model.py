"""The model as the server sees it: its names, tokenizer, chat template, limits and sampling defaults."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.config import ServerConfig
from engine.errors import InvalidRequest
from engine.server.chat_template import ChatTemplate
from engine.server.errors import UnknownModel
from engine.tokenizer import Tokenizer, read_json

log = logging.getLogger(__name__)

_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "max_new_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    names: tuple[str, ...]  # the first is the one reported; all are accepted
    root: str  # where the checkpoint lies
    tokenizer: Tokenizer
    template: ChatTemplate
    vocab_size: int  # of the model: ids below it can be embedded
    defaults: Mapping[str, Any] = field(default_factory=dict)  # sampling, as the checkpoint recommends it
    created: int = field(default_factory=lambda: int(time.time()))  # Unix seconds

    @property
    def name(self) -> str:
        return self.names[0]

    def check_name(self, name: str | None) -> None:
        """Raise UnknownModel unless `name` is one of ours; no name means the one model there is."""
        if name is not None and name not in self.names:
            raise UnknownModel(f"The model {name!r} is not served here; {self.name!r} is.", param="model")

    def card(self, max_model_len: int) -> dict[str, Any]:
        """Its entry in /v1/models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "berth",
            "root": self.root,
            "parent": None,
            "max_model_len": max_model_len,
        }

    def check_token_ids(self, token_ids: list[int], param: str) -> None:
        """Raise InvalidRequest for an id that the model has no embedding for."""
        highest = max(token_ids, default=0)
        if highest >= self.vocab_size:
            raise InvalidRequest(
                f"Token id {highest} is outside the vocabulary of {self.vocab_size}.", param=param
            )


def load_served_model(directory: Path, config: ServerConfig, tokenizer: Tokenizer) -> ServedModel:
    """What the server reads of a checkpoint. Raises CheckpointError and ConfigError."""
    sources = {"default": config.chat_template} if config.chat_template else tokenizer.chat_templates
    model_config = read_json(directory / "config.json")
    return ServedModel(
        names=config.served_model_names,
        root=str(directory),
        tokenizer=tokenizer,
        template=ChatTemplate(
            sources,
            special_tokens=tokenizer.special_tokens,
            content_format=config.chat_template_content_format,
            defaults=config.default_chat_template_kwargs,
        ),
        vocab_size=int(model_config.get("vocab_size") or tokenizer.vocab_size),
        defaults=_sampling_defaults(directory, config),
    )


def _sampling_defaults(directory: Path, config: ServerConfig) -> dict[str, Any]:
    declared = read_json(directory / "generation_config.json") if config.generation_config == "auto" else {}
    declared = {**declared, **config.override_generation_config}
    penalty = declared.get("repetition_penalty")
    if penalty not in (None, 1.0):
        log.warning("The checkpoint recommends repetition_penalty %s, which is not supported yet.", penalty)
    return {name: declared[name] for name in _DEFAULTS if declared.get(name) is not None}
