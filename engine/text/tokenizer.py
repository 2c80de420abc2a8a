"""Text to tokens and back, and the checkpoint's tokenizer files: special tokens, chat templates.

Reads `tokenizer.json` with the `tokenizers` library alone. transformers, slow to import, is used only if a
checkpoint has no such file. Knows nothing of requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer as FastTokenizer

from engine.checkpoint.eos_tokens import declared_eos_tokens, main_eos_first
from engine.checkpoint.raw_config import read_raw_config
from engine.errors import CheckpointError, InvalidRequest, UnsupportedModel

T = TypeVar("T", bound=Any)

ENCODED_TOGETHER = 2**18  # characters: while encoding, the library uses sixty times the memory of the text


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """The checkpoint's tokenizer; `fast` does the work (and is what a DecodeStream needs)."""

    fast: FastTokenizer
    special_tokens: Mapping[str, str] = field(
        default_factory=dict
    )  # bos_token -> "<s>" …, for chat templates
    chat_templates: Mapping[str, str] = field(default_factory=dict)  # name -> Jinja source; "default" is one
    declared_end_tokens: tuple[int, ...] = ()  # those that the model's configuration names

    @property
    def vocab_size(self) -> int:
        return self.fast.get_vocab_size(with_added_tokens=True)

    @cached_property
    def longest_token_bytes(self) -> int:
        """No token stands for more bytes of UTF-8 than this."""
        return max((len(spelling.encode()) for spelling in self.fast.get_vocab()), default=1)

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's own end-of-sequence token; checkpoints may name further ones."""
        token = self.special_tokens.get("eos_token")
        return None if token is None else self.fast.token_to_id(token)

    @cached_property
    def end_token_ids(self) -> tuple[int, ...]:
        """The list that scheduler, sampler and grammars share: the tokenizer's own end token is the first."""
        return main_eos_first(self.declared_end_tokens, self.eos_token_id)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Tokens of `text`; special tokens are added as the checkpoint's post-processor does.

        Raises InvalidRequest for invalid Unicode (lone surrogates).
        """
        with _named_surrogates():
            return list(self.fast.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_without_gil(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Encodes several texts, as many at a time as memory allows, without holding the GIL.

        `encode` holds it all the time: 0.7 s for a megabyte.
        """
        token_ids: list[list[int]] = []
        for batch in batches_of(texts, ENCODED_TOGETHER):
            with _named_surrogates():
                encodings = self.fast.encode_batch_fast(list(batch), add_special_tokens=add_special_tokens)
            token_ids += [encoding.ids for encoding in encodings]
        return token_ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return str(self.fast.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def decode_without_gil(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Like `decode`, without holding the GIL."""
        (text,) = self.fast.decode_batch([list(token_ids)], skip_special_tokens=skip_special_tokens)
        return str(text)

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """The vocabulary's own spelling of each token."""
        return [self.fast.id_to_token(token_id) or "" for token_id in token_ids]


@contextmanager
def _named_surrogates() -> Iterator[None]:
    try:
        yield
    except (UnicodeEncodeError, TypeError) as error:  # TypeError "must be str": for a str that isn't UTF-8
        raise InvalidRequest("The text is not valid Unicode: it contains a lone surrogate.") from error


def batches_of(texts: Sequence[T], most: int, size: Callable[[T], int] = len) -> Iterator[Sequence[T]]:
    """Runs of texts with at most `most` characters together; a longer text is alone."""
    first = total = 0
    for index, text in enumerate(texts):
        total += size(text)
        if total > most and index > first:
            yield texts[first:index]
            first, total = index, size(text)
    if first < len(texts):
        yield texts[first:]


def load_tokenizer(
    directory: Path, *, model: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Tokenizer:
    """The tokenizer in `directory`, for the model in `model` (default: the same), whose end tokens it has.

    `overrides` are --hf-overrides. Raises CheckpointError if there is no tokenizer or it can't be read.
    """
    config = read_json(directory / "tokenizer_config.json")
    return Tokenizer(
        fast=_load_fast(directory),
        special_tokens=_special_tokens({**read_json(directory / "special_tokens_map.json"), **config}),
        chat_templates=_chat_templates(directory, config),
        declared_end_tokens=_declared_end_tokens(model or directory, overrides),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a checkpoint's JSON file, {} if there is no file. Raises CheckpointError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} doesn't contain a JSON object.")
    return value


def _declared_end_tokens(directory: Path, overrides: Mapping[str, Any] | None) -> tuple[int, ...]:
    has_config = (directory / "config.json").is_file()
    return declared_eos_tokens(directory, read_raw_config(directory, overrides) if has_config else {})


def _load_fast(directory: Path) -> FastTokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        return _load_with_transformers(directory)
    try:
        fast = FastTokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} can't be read: {error}") from error
    # The file's limits are meant for training batches: a prompt must not be truncated or padded silently.
    fast.no_truncation()
    fast.no_padding()
    return fast


def _load_with_transformers(directory: Path) -> FastTokenizer:
    if not any(directory.glob("*token*")) and not (directory / "vocab.json").is_file():
        raise CheckpointError(
            f"There is no tokenizer in {directory}: neither tokenizer.json nor another known file."
        )
    _check_converter(directory)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise CheckpointError(f"The tokenizer in {directory} can't be read: {error}") from error
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(fast, FastTokenizer):
        raise UnsupportedModel(
            f"{directory} has a tokenizer of an unsupported kind: {type(tokenizer).__name__}."
        )
    return fast


def _check_converter(directory: Path) -> None:
    """Raise CheckpointError if a package is missing that transformers reads the vocabulary with."""
    for path in sorted({*directory.glob("*.model"), *directory.glob("*.tiktoken")}):
        with path.open("rb") as file:
            is_sentencepiece = file.read(1) == _SENTENCEPIECE_START
        package = "sentencepiece" if is_sentencepiece else "tiktoken"
        if find_spec(package) is None:
            raise CheckpointError(
                f"{directory} has no tokenizer.json, and its {path.name} can be read only with the package "
                f"{package}: `pip install {package}`, or save a tokenizer.json beside it."
            )


_SENTENCEPIECE_START = b"\n"  # the tag of a message's first field; tiktoken's files are text
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Each value is a string, or an object with `content`."""
    tokens = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _chat_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """From tokenizer_config.json (a string, or a list of named ones); separate files override it."""
    declared = config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(declared, str):
        templates["default"] = declared
    elif isinstance(declared, list):
        templates = {item["name"]: item["template"] for item in declared}
    files = {"default": directory / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    for name, path in files.items():
        if path.is_file():
            templates[name] = path.read_text(encoding="utf-8")
    return templates
