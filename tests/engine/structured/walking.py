"""Random outputs of a model under a compiled constraint."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from engine.structured import CompiledOutput, GrammarCompiler
from engine.text.tokenizer import Tokenizer, load_tokenizer

DEMO = Path(__file__).parents[3] / "models" / "berth-demo"
MAX_TOKENS = 1500
_CLOSING = set('"}]')


class Walker:
    """Walks with the demo model's tokenizer, without the model."""

    def __init__(self) -> None:
        self.tokenizer: Tokenizer = load_tokenizer(DEMO)
        eos = self.tokenizer.eos_token_id
        assert eos is not None
        self.eos = eos
        self.grammar_compiler = GrammarCompiler(
            self.tokenizer, vocab_size=self.tokenizer.vocab_size, eos_token_ids=[eos]
        )
        texts = (
            self.tokenizer.decode([token], skip_special_tokens=True)
            for token in range(self.tokenizer.vocab_size)
        )
        self._is_closing = torch.tensor([bool(_CLOSING & set(text)) for text in texts])

    def walk(self, compiled: CompiledOutput, seed: int, max_tokens: int = MAX_TOKENS) -> str | None:
        """A random output, preferably short; None if it was given up after many tokens."""
        chance = random.Random(seed)
        constraint = self.grammar_compiler.constraint(compiled)
        words = -(-self.tokenizer.vocab_size // 32)
        shifts = torch.arange(32)
        output: list[int] = []
        while len(output) < max_tokens:
            mask = torch.full((1, words), -1, dtype=torch.int32)
            constraint.fill_mask(mask, 0)
            allowed = ((mask[0][:, None] >> shifts) & 1).flatten()[: self.tokenizer.vocab_size].bool()
            closing = allowed & self._is_closing
            chosen = closing if chance.random() < 0.15 and closing.any() else allowed
            tokens = chosen.nonzero().flatten()
            token = int(tokens[chance.randrange(len(tokens))])
            constraint.accept(token)  # raises if the mask allowed a dead end
            if token == self.eos:
                return self.tokenizer.decode(output, skip_special_tokens=True)
            output.append(token)
        return None

    def takes(self, compiled: Any, text: str) -> bool:
        """Whether a model could generate the text."""
        constraint = self.grammar_compiler.constraint(compiled)
        try:
            for token in [*self.tokenizer.encode(text, add_special_tokens=False), self.eos]:
                constraint.accept(token)
        except ValueError:
            return False
        return True
