"""Truncates prompts by `truncate_prompt_tokens`."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import InvalidRequest
from engine.server.protocol.generation_body import GenerationBody

_SLACK_TOKENS = 64  # text that starts elsewhere may be tokenized differently at its start


@dataclass(frozen=True, slots=True)
class Truncation:
    num_tokens: int
    keeps_end: bool

    @staticmethod
    def of(body: GenerationBody, max_model_len: int, *, needs_output: bool) -> Truncation | None:
        """As vLLM: -1 keeps what fits, minus one token if there is to be output.

        Raises InvalidRequest for 0 and for more than the context.
        """
        wanted = body.truncate_prompt_tokens
        if wanted is None:
            return None
        if wanted > max_model_len:
            raise InvalidRequest(
                f"truncate_prompt_tokens {wanted} exceeds the context length of {max_model_len} tokens.",
                param="truncate_prompt_tokens",
            )
        if wanted == 0:
            raise InvalidRequest(
                "truncate_prompt_tokens 0 would remove the whole prompt: use 1 or more, or -1.",
                param="truncate_prompt_tokens",
            )
        num_tokens = wanted if wanted > 0 else max_model_len - int(needs_output)
        return Truncation(num_tokens, keeps_end=body.truncation_side != "right")

    def cut(self, token_ids: list[int]) -> list[int]:
        return token_ids[-self.num_tokens :] if self.keeps_end else token_ids[: self.num_tokens]

    def cut_text(self, text: str, longest_token_bytes: int) -> str:
        """The part of a long text that can matter: tokenizing all of it would take too long."""
        most = (self.num_tokens + _SLACK_TOKENS) * longest_token_bytes
        return text[-most:] if self.keeps_end else text[:most]
