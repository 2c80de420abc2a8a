"""Tokenizers of encoders in GGUF files: WordPiece ("bert") and SentencePiece's unigrams ("t5")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer

from engine.errors import CheckpointError

_SPACE = "▁"
_CONTROL, _UNKNOWN = 3, 2
_MAX_CHARACTERS = 100  # of a word; longer ones are unknown
_CHARSMAP = "tokenizer.ggml.precompiled_charsmap"


class Vocabulary(Protocol):
    tokens: Sequence[str]
    types: Sequence[int]
    metadata: Mapping[str, Any]

    def ids(self) -> dict[str, int]: ...

    def scores(self) -> Sequence[float]: ...

    def special(self, *keys: str, otherwise: str) -> str:
        """The token that the first of these keys has; else `otherwise`. Raises CheckpointError."""
        ...


def word_piece(vocabulary: Vocabulary) -> FastTokenizer:
    """llama.cpp marks a word's first piece where BERT marks the others. It changes `vocabulary` back.

    Whether letters are lowered isn't in the file: they are unless the vocabulary has capitals.
    """
    pairs = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    is_cased = any(kind != _CONTROL and "[" not in token and token != token.lower() for token, kind in pairs)
    vocabulary.tokens = [_berts_own(token, kind) for token, kind in pairs]
    unknown = vocabulary.special("unknown", otherwise="[UNK]")
    fast = FastTokenizer(
        models.WordPiece(vocab=vocabulary.ids(), unk_token=unknown, max_input_chars_per_word=_MAX_CHARACTERS)
    )
    fast.normalizer = normalizers.BertNormalizer(lowercase=not is_cased)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    begin = vocabulary.special("cls", "bos", otherwise="[CLS]")
    end = vocabulary.special("seperator", "eos", otherwise="[SEP]")  # llama.cpp's spelling
    fast.post_processor = _around(vocabulary, begin, end, between=(end,))
    return fast


def _berts_own(token: str, kind: int) -> str:
    if token.startswith(_SPACE):
        return token.removeprefix(_SPACE)
    return token if kind == _CONTROL else f"##{token}"


def unigram(vocabulary: Vocabulary) -> FastTokenizer:
    pieces = list(zip(vocabulary.tokens, map(float, vocabulary.scores()), strict=True))
    unknown = next((number for number, kind in enumerate(vocabulary.types) if kind == _UNKNOWN), None)
    if unknown is None:
        raise CheckpointError("Its tokenizer has no token for what is unknown.")
    fast = FastTokenizer(models.Unigram(pieces, unknown, False))
    charsmap = vocabulary.metadata.get(_CHARSMAP)
    own = [] if charsmap is None else [normalizers.Precompiled(bytes(charsmap))]
    fast.normalizer = normalizers.Sequence([*own, normalizers.Replace(Regex(" {2,}"), " ")])
    space = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    fast.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    begin = vocabulary.special("bos", "cls", otherwise="<s>")
    end = vocabulary.special("eos", "seperator", otherwise="</s>")
    fast.post_processor = _around(vocabulary, begin, end, between=(end, end))
    return fast


def _around(
    vocabulary: Vocabulary, begin: str, end: str, *, between: Sequence[str]
) -> processors.PostProcessor:
    ids = vocabulary.ids()
    return processors.TemplateProcessing(
        single=[begin, "$A", end],
        pair=[begin, "$A", *between, "$B:1", f"{end}:1"],
        special_tokens=[(token, ids[token]) for token in {begin, end}],
    )
