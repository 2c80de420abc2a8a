"""Small tokenizers built with the library: every byte is a token."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

# The bytes that come first are what a fake runner of 40 tokens speaks: letters, and three characters of two,
# three and four bytes, so that most of its answers hold broken ones.
_SPECIAL = ("<eos>", "<s>", "<pad>")
_FIRST = [*b"abcdefgh .\n", *"éß".encode(), *"€あ".encode(), *"🙂".encode()]


def byte_level_tokenizer() -> Tokenizer:
    """Ids 0 … 2 are special (`<eos>`, `<s>`, `<pad>`); the others are single bytes."""
    spellings = [_ALPHABET[byte] for byte in dict.fromkeys([*_FIRST, *range(256)])]
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *spellings])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL])
    return tokenizer


def metaspace_tokenizer() -> Tokenizer:
    """Like Llama 2's: a space belongs to the next word, with byte fallback, and text starts with <s>."""
    words = ["▁", "▁hello", "▁world", "hello", "world", "a", "b", "c", "!", "▁a", "▁b", "▁c"]
    pieces = ["<eos>", "<s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokenizer = Tokenizer(
        models.Unigram([(piece, -float(n > 258)) for n, piece in enumerate(pieces)], 2, True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<eos>", "<s>", "<unk>")])
    return tokenizer


def _alphabet() -> dict[int, str]:
    """GPT-2's alphabet: printable bytes are themselves, others are characters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + n) for n, b in enumerate(others)}}


_ALPHABET = _alphabet()


def write_tokenizer_files(directory: Path, tokenizer: Tokenizer, **config: object) -> Path:
    """Write the tokenizer files of a checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "<eos>", "bos_token": "<s>", "chat_template": TEMPLATE, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
