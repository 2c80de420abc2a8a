"""Evaluate a model on the held-out questions: `python -m training.evaluate --model models/berth-demo`.

Loads the folder with transformers, like any user, and decodes greedily in batches.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.heldout import Probe, probes


class Demo:
    """A checkpoint and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def prompt(self, probe: Probe) -> str:
        """The text that the model continues."""
        if not probe.chat:
            return probe.prompt
        head = [{"role": "system", "content": probe.system}] if probe.system else []
        messages = [*head, {"role": "user", "content": probe.prompt}]
        rendered = self.tokenizer.apply_chat_template(
            messages, tools=list(probe.tools) or None, add_generation_prompt=True, tokenize=False
        )
        return str(rendered)

    @torch.inference_mode()
    def answers(self, asked: list[Probe], limit: int = 150) -> list[str]:
        """The greedy answers, all in one batch."""
        prompts = [self.prompt(probe) for probe in asked]
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True)
        done = self.model.generate(
            **inputs, max_new_tokens=limit, do_sample=False, temperature=None, top_p=None, top_k=None
        )
        start = inputs["input_ids"].shape[1]
        return [str(text) for text in self.tokenizer.batch_decode(done[:, start:], skip_special_tokens=True)]


def main() -> None:
    """Print every answer and the share of correct ones per category."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/berth-demo"))
    parser.add_argument("--failures-only", action="store_true")
    options = parser.parse_args()
    asked, score = probes(), defaultdict[str, list[bool]](list)
    for probe, answer in zip(asked, Demo(options.model).answers(asked), strict=True):
        good = probe.check(answer)
        score[probe.category].append(good)
        if not (good and options.failures_only):
            sys.stdout.write(
                f"{'ok  ' if good else 'FAIL'} {probe.category:8}{probe.prompt}\n         -> {answer}\n"
            )
    for category, results in score.items():
        sys.stdout.write(f"{category:8}{sum(results)} of {len(results)}\n")


if __name__ == "__main__":
    main()
