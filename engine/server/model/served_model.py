"""The served model: its names, tokenizer, chat template, parsers and sampling defaults."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.checkpoint.raw_config import spread_text_config
from engine.config import ServerConfig
from engine.errors import ConfigError, InvalidRequest
from engine.server.http.errors import UnknownModel
from engine.server.model.adapters import Adapters
from engine.server.model.chat_template import ChatTemplate
from engine.server.protocol.sampling_fields import CHECKPOINT_FIELDS
from engine.structured import GrammarCompiler
from engine.text.parsers.choice import F, detect_format, named_format
from engine.text.parsers.reasoning import REASONING_FORMATS, ReasoningFormat
from engine.text.parsers.tool_format import ToolFormat
from engine.text.parsers.tools import TOOL_FORMATS
from engine.text.tokenizer import Tokenizer, read_json

log = logging.getLogger(__name__)

_DEFAULTS = (*CHECKPOINT_FIELDS, "max_new_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    names: tuple[str, ...]  # the first is reported; all are accepted
    root: str  # the checkpoint's usual name, which does not reveal its path
    tokenizer: Tokenizer
    template: ChatTemplate
    vocab_size: int  # ids below it have an embedding
    grammar_compiler: GrammarCompiler
    end_token_ids: tuple[int, ...] = ()  # the tokenizer's own comes first
    tool_format: ToolFormat | None = None  # None: calls aren't parsed
    reasoning_format: ReasoningFormat | None = None
    other_names: tuple[str, ...] = ()  # accepted in requests, but not listed
    takes_templates: bool = False  # whether requests may include a chat template
    defaults: Mapping[str, Any] = field(
        default_factory=dict
    )  # the checkpoint's recommended sampling parameters
    adapters: Adapters = field(default_factory=Adapters)
    created: int = field(default_factory=lambda: int(time.time()))  # Unix seconds

    @property
    def name(self) -> str:
        return self.names[0]

    def check_name(self, name: str | None) -> None:
        """Raise UnknownModel unless `name` is a name of this model or an adapter; None is accepted."""
        if name is None or name in self.adapters:
            return
        if name not in self.names and name not in self.other_names:
            raise UnknownModel(
                f"The model {name!r} does not exist; this server serves {self.name!r}.", param="model"
            )

    def template_for(self, source: str | None) -> ChatTemplate:
        """The model's own template, or the request's if allowed. Raises InvalidRequest."""
        if source is None:
            return self.template
        if not self.takes_templates:
            raise InvalidRequest(
                "chat_template is accepted only if the server is started with --trust-request-chat-template.",
                param="chat_template",
            )
        try:
            return self.template.replaced(source)
        except ConfigError as error:
            raise InvalidRequest(error.message, param="chat_template") from error

    def cards(self, max_model_len: int) -> list[dict[str, Any]]:
        """The entries in /v1/models: one for each of its names and of its adapters."""
        card = {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "berth",
            "root": self.root,
            "parent": None,
            "max_model_len": max_model_len,
        }
        return [*({**card, "id": name} for name in self.names), *self.adapters.cards(card)]

    def check_token_ids(self, token_ids: list[int], param: str) -> None:
        """Raise InvalidRequest for an id outside the vocabulary."""
        highest = max(token_ids, default=0)
        if highest >= self.vocab_size:
            raise InvalidRequest(
                f"{param}: token id {highest} is outside the vocabulary of {self.vocab_size} tokens.",
                param=param,
            )


def load_served_model(directory: Path, config: ServerConfig, tokenizer: Tokenizer) -> ServedModel:
    """Read the server's part of a checkpoint. Raises CheckpointError and ConfigError."""
    sources = {"default": config.chat_template} if config.chat_template else tokenizer.chat_templates
    model_config = spread_text_config(read_json(directory / "config.json"))
    vocab_size = int(model_config.get("vocab_size") or tokenizer.vocab_size)
    end_token_ids = tokenizer.end_token_ids
    return ServedModel(
        names=config.served_model_names,
        other_names=_names_on_disk(directory),
        root=_names_on_disk(directory)[0],
        tokenizer=tokenizer,
        template=ChatTemplate(
            sources,
            special_tokens=tokenizer.special_tokens,
            content_format=config.chat_template_content_format,
            defaults=config.default_chat_template_kwargs,
        ),
        vocab_size=vocab_size,
        grammar_compiler=GrammarCompiler(tokenizer, vocab_size=vocab_size, eos_token_ids=end_token_ids),
        end_token_ids=end_token_ids,
        tool_format=_format("--tool-call-parser", config.tool_call_parser, TOOL_FORMATS, sources),
        reasoning_format=_format("--reasoning-parser", config.reasoning_parser, REASONING_FORMATS, sources),
        takes_templates=config.trust_request_chat_template,
        defaults=_sampling_defaults(directory, config),
    )


def _names_on_disk(directory: Path) -> tuple[str, ...]:
    """Names of a model directory: its base name and path, or in the hub's cache the model's id."""
    if directory.parent.name == "snapshots":
        return (directory.parents[1].name.removeprefix("models--").replace("--", "/"),)
    return (directory.name, str(directory))


def _format(flag: str, wanted: str | None, formats: Sequence[F], templates: Mapping[str, str]) -> F | None:
    """By the flag's name, else detected from the chat templates; "none" disables parsing."""
    if wanted == "none":
        return None
    if wanted is None:
        return detect_format(formats, templates.values())
    try:
        return named_format(formats, wanted)
    except LookupError as error:
        raise ConfigError(f"{flag} {wanted} is unknown. Use one of {error} or none.") from None


def _sampling_defaults(directory: Path, config: ServerConfig) -> dict[str, Any]:
    declared = read_json(directory / "generation_config.json") if config.generation_config == "auto" else {}
    declared = {**declared, **config.override_generation_config}
    return {name: declared[name] for name in _DEFAULTS if declared.get(name) is not None}
