"""The tokenizer: byte-level BPE learnt from our corpus, and the rendering of documents into text.

Each digit is a token, so that sums can be learnt; `<tool_call>` and similar are added tokens that stay
visible when special tokens are skipped, as parsers of tool calls and reasoning expect.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from training.corpus import documents
from training.grammar import Document, JsonObject, Message

END_OF_TEXT, MESSAGE_START, MESSAGE_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, MESSAGE_START, MESSAGE_END)
MARKUP = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
CONTEXT_TOKENS = 2048
TEMPLATE_PATH = Path(__file__).with_name("chat_template.jinja")
# One digit; a capitalised word without the space before it, so that a name has the same tokens wherever it is
# copied to; another word with its space; a run of punctuation with its space; white space.
_PIECES = r"\p{N}|\p{Lu}\p{L}*| ?\p{Ll}\p{L}*|\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"


class Renderer:
    """Turns documents into text with the chat template, like transformers."""

    def __init__(self) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string(TEMPLATE_PATH.read_text())

    def chat(
        self,
        messages: list[Message],
        tools: list[JsonObject] | None = None,
        thinking: bool = False,
        prompt: bool = True,
    ) -> str:
        """The text of a chat; with `prompt`, ready for the assistant's reply."""
        return self._template.render(
            messages=messages, tools=tools, enable_thinking=thinking, add_generation_prompt=prompt
        )

    def document(self, document: Document) -> str:
        """The text to learn from, without the end-of-text token."""
        if document.text:
            return document.text
        return self.chat(
            list(document.messages), list(document.tools) or None, document.thinking, prompt=False
        )


def train_tokenizer(seed: int, vocabulary: int, num_documents: int = 12000) -> Tokenizer:
    """Learn the merges from the corpus of `seed`; `vocabulary` counts every token."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL) - len(MARKUP), show_progress=False, min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(_texts(seed, num_documents), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP])
    return tokenizer


def _texts(seed: int, count: int) -> Iterator[str]:
    renderer = Renderer()
    for document in islice(documents(seed), count):
        text = renderer.document(document)
        for token in (*SPECIAL, *MARKUP):
            text = text.replace(token, "\n")
        yield text


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, its config and the chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    added = {str(tokenizer.token_to_id(token)): _added_token(token) for token in (*SPECIAL, *MARKUP)}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_TOKENS,
        "eos_token": MESSAGE_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE_PATH.read_text())


def _added_token(token: str) -> JsonObject:
    plain = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": token, **plain, "special": token in SPECIAL}
