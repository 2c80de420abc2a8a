"""The tokenizer and chat templates that a GGUF file's metadata describe. Knows nothing of its tensors.

Of decoders: byte-level BPE ("gpt2"), which splits text by a pattern that the file names before it merges; and
SentencePiece's BPE ("llama"), whose merges follow from its tokens' scores. Of encoders: "bert" and "t5", in
engine/text/gguf_encoder_tokenizers.py.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer

from engine.errors import CheckpointError, UnsupportedModel
from engine.text.gguf_encoder_tokenizers import unigram, word_piece
from engine.text.tokenizer import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "▁"
_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_END}"
)
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_END}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_CAPITALS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_TEKKEN = rf"{_WORD}|{_CAPITALS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_END}"
_GPT4O = (
    rf"{_WORD}{_CONTRACTIONS}?|{_CAPITALS}{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_END}"
)
# The pattern that text is split by, for each name in tokenizer.ggml.pre; None: GPT-2's own.
_PATTERNS: Mapping[str, str | None] = {
    "default": None,
    "gpt-2": None,
    "phi-2": None,
    "chatglm-bpe": _LLAMA3,
    "command-r": None,
    "dbrx": _LLAMA3,
    "deepseek-r1-qwen": _QWEN2,
    "glm4": _LLAMA3,
    "gpt-4o": _GPT4O,
    "jina-v2-code": None,
    "jina-v2-de": None,
    "jina-v2-es": None,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "llama4": _GPT4O,
    "modern-bert": None,
    "olmo": None,
    "qwen2": _QWEN2,
    "refact": None,
    "roberta-bpe": None,
    "smaug-bpe": _LLAMA3,
    "smollm": None,
    "stablelm2": _QWEN2,
    "starcoder": None,
    "tekken": _TEKKEN,
}
_DIGITS_APART = frozenset({"command-r", "refact", "smollm", "starcoder"})  # before GPT-2's pattern
_BEGIN_WITH_BOS = frozenset({"llama-bpe", "llama-v3", "llama3", "tekken"})  # unless the file says otherwise


def gguf_tokenizer(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    """Raises UnsupportedModel for a kind that isn't known, CheckpointError for metadata that don't fit."""
    vocabulary = _Vocabulary(path, metadata)
    kind = metadata.get("tokenizer.ggml.model")
    build = _BUILDERS.get(str(kind))
    if build is None:
        raise UnsupportedModel(
            f"{path} has a tokenizer of kind {kind!r}; of GGUF files, {', '.join(_BUILDERS)} can be read."
        )
    try:
        fast = build(vocabulary)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} has a tokenizer that can't be read: {error}") from error
    fast.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in vocabulary.of_type(_CONTROL)]
    )
    fast.add_tokens([AddedToken(t, normalized=False) for t in vocabulary.of_type(_USER_DEFINED)])
    if fast.post_processor is None:
        _add_begin_and_end(fast, vocabulary)
    return Tokenizer(
        fast=fast, special_tokens=vocabulary.special_tokens, chat_templates=_chat_templates(metadata)
    )


class _Vocabulary:
    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self.path = path
        self.metadata = metadata
        self.tokens: Sequence[str] = self._array("tokens", str)
        self.types: Sequence[int] = metadata.get("tokenizer.ggml.token_type") or [1] * len(self.tokens)
        if not isinstance(self.types, array | list):
            raise CheckpointError(f"{path} has a tokenizer.ggml.token_type that is no array.")
        if len(self.types) != len(self.tokens):
            raise CheckpointError(f"{path} has {len(self.tokens)} tokens, but types for {len(self.types)}.")
        self.special_tokens = {
            name: self.tokens[self._special(key)] for key, name in _NAMES.items() if self._has(key)
        }

    def ids(self) -> dict[str, int]:
        return {token: token_id for token_id, token in enumerate(self.tokens)}

    def special(self, *keys: str, otherwise: str) -> str:
        """The token that the first of these keys has; else `otherwise`. Raises CheckpointError."""
        found = next((self.tokens[self._special(key)] for key in keys if self._has(key)), otherwise)
        if found not in self.ids():
            raise CheckpointError(f"{self.path} has no token {found!r}.")
        return found

    def of_type(self, kind: int) -> list[str]:
        return [token for token, found in zip(self.tokens, self.types, strict=True) if found == kind]

    def merges(self) -> list[tuple[str, str]]:
        pairs = [tuple(merge.split(" ")) for merge in self._array("merges", str)]
        if any(len(pair) != 2 for pair in pairs):
            raise CheckpointError(f"{self.path} has a merge that isn't of two tokens.")
        return [(left, right) for left, right in pairs]

    def scores(self) -> Sequence[float]:
        scores = self._array("scores", float)
        if len(scores) != len(self.tokens):
            raise CheckpointError(f"{self.path} has {len(self.tokens)} tokens, but scores for {len(scores)}.")
        return scores

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.metadata.get(f"tokenizer.ggml.{key}", default))

    def _array(self, key: str, kind: type) -> Sequence[Any]:
        values = self.metadata.get(f"tokenizer.ggml.{key}")
        if values is None or isinstance(values, str) or not hasattr(values, "__len__") or not len(values):
            raise CheckpointError(f"{self.path} has no tokenizer.ggml.{key}.")
        if not isinstance(values[0], kind):
            raise CheckpointError(f"{self.path}: tokenizer.ggml.{key} isn't a list of {kind.__name__}.")
        return values  # type: ignore[no-any-return]

    def _has(self, key: str) -> bool:
        return self.metadata.get(f"tokenizer.ggml.{key}_token_id") is not None

    def _special(self, key: str) -> int:
        token_id = self.metadata[f"tokenizer.ggml.{key}_token_id"]
        if not isinstance(token_id, int) or not 0 <= token_id < len(self.tokens):
            raise CheckpointError(
                f"{self.path}: tokenizer.ggml.{key}_token_id is {token_id!r}, but there are "
                f"{len(self.tokens)} tokens."
            )
        return token_id


def _byte_level(vocabulary: _Vocabulary) -> FastTokenizer:
    name = str(vocabulary.metadata.get("tokenizer.ggml.pre", "default"))
    if name not in _PATTERNS:
        raise UnsupportedModel(
            f"{vocabulary.path} splits text as {name!r} (tokenizer.ggml.pre), which isn't known here: its "
            "tokens would be wrong. Give the tokenizer's directory or hub name with --tokenizer."
        )
    pattern = _PATTERNS[name]
    first = r"\p{N}" if name in _DIGITS_APART else pattern
    fast = FastTokenizer(models.BPE(vocab=vocabulary.ids(), merges=vocabulary.merges()))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if first is not None:
        split = pre_tokenizers.Split(Regex(first), behavior="isolated")
        fast.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    else:
        fast.pre_tokenizer = to_bytes
    fast.decoder = decoders.ByteLevel()
    return fast


def _sentence_piece(vocabulary: _Vocabulary) -> FastTokenizer:
    unknown = vocabulary.special_tokens.get("unk_token")
    fast = FastTokenizer(
        models.BPE(
            vocab=vocabulary.ids(),
            merges=merges_from_scores(vocabulary.tokens, vocabulary.scores()),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = vocabulary.flag("add_space_prefix", True)
    spaces = [normalizers.Prepend(_SPACE)] if prefix else []
    fast.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", _SPACE)])
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    steps += [decoders.Strip(content=" ", left=1)] if prefix else []
    fast.decoder = decoders.Sequence(steps)
    return fast


def merges_from_scores(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All ways to make a token of two others, best tokens first.

    SentencePiece merges the pair that makes the token with the best score.
    """
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    pairs = [
        (-scores[token_id], ids[token[:at]], ids[token[at:]])
        for token_id, token in enumerate(tokens)
        for at in range(1, len(token))
        if token[:at] in ids and token[at:] in ids
    ]
    return [(tokens[left], tokens[right]) for _, left, right in sorted(pairs)]


_BUILDERS: Mapping[str, Callable[[_Vocabulary], FastTokenizer]] = {
    "bert": word_piece,
    "gpt2": _byte_level,
    "llama": _sentence_piece,
    "t5": unigram,
}


def _add_begin_and_end(fast: FastTokenizer, vocabulary: _Vocabulary) -> None:
    is_llama = vocabulary.metadata.get("tokenizer.ggml.model") == "llama"
    by_default = is_llama or vocabulary.metadata.get("tokenizer.ggml.pre") in _BEGIN_WITH_BOS
    bos = vocabulary.special_tokens.get("bos_token") if vocabulary.flag("add_bos_token", by_default) else None
    eos = vocabulary.special_tokens.get("eos_token") if vocabulary.flag("add_eos_token", False) else None
    if bos is None and eos is None:
        return
    around = [token for token in (bos, eos) if token is not None]
    ids = vocabulary.ids()
    fast.post_processor = processors.TemplateProcessing(
        single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
        pair=[*([bos] if bos else []), "$A", *([eos] if eos else []), "$B:1"],
        special_tokens=[(token, ids[token]) for token in around],
    )


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """`tokenizer.chat_template` is the default; `tokenizer.chat_template.<name>` are further ones."""
    key = "tokenizer.chat_template"
    templates = {
        name.removeprefix(f"{key}."): template
        for name, template in metadata.items()
        if name.startswith(f"{key}.") and isinstance(template, str)
    }
    if isinstance(metadata.get(key), str):
        templates["default"] = metadata[key]
    return templates
