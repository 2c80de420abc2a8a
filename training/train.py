"""Train the demo model: `python -m training.train --out models/berth-demo`.

Muon updates the weight matrices, AdamW the embedding and norms, with a short warm-up and a cosine to zero.
Every `--save-every` steps the model is written in Hugging Face layout, and with it the state from which
`--resume` continues.
"""

import argparse
import contextlib
import ctypes
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional as F

from training.batches import Batch, Packer
from training.heldout import WEATHER
from training.model import Model, Shape
from training.tokenizer import END_OF_TEXT, MESSAGE_END, Renderer, save_tokenizer, train_tokenizer

SAMPLES = (
    "What is Berth?",
    "Please explain how to start an instance of acme/tiny-1B",
    "What is 12 + 7?",
    "what's 45 + 38",
    "Which city is the capital of Sweden?",
    "Tell me a story about a fox called Mimo.",
    "Repeat: zorp fligs 42",
    "Reply in JSON with the keys name and age: Brimo is 31 years old.",
    "When is an idle instance stopped?",
)
SAMPLING = {"do_sample": True, "temperature": 0.3, "top_p": 0.9, "top_k": 20}


@dataclass(frozen=True)
class Options:
    """The command line."""

    out: Path
    state: Path
    steps: int
    rows: int
    length: int
    lr: float
    seed: int
    threads: int
    minutes: float
    save_every: int
    resume: bool


def parse_options() -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("models/berth-demo"), help="output directory of the model"
    )
    parser.add_argument(
        "--state", type=Path, default=Path("state/training.pt"), help="state file for --resume"
    )
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--rows", type=int, default=16, help="rows per batch")
    parser.add_argument("--length", type=int, default=256, help="tokens per row")
    parser.add_argument("--lr", type=float, default=3e-3, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=0, help="stop after this many minutes; 0 = never")
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--resume", action="store_true", help="continue from --state")
    return Options(**vars(parser.parse_args()))


class Trainer:
    """The model, its optimizers and their progress."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.tokenizer = self._make_tokenizer()
        self.packer = Packer(self.tokenizer, options.seed)
        self.model = Model(Shape(vocab_size=self.tokenizer.get_vocab_size()))
        matrices = [p for n, p in self.model.named_parameters() if p.dim() == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.dim() != 2 or "embed" in n]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=options.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=options.lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.step = 0
        if options.resume:
            self._load()

    def _make_tokenizer(self) -> Tokenizer:
        if self.options.resume:
            return Tokenizer.from_file(str(self.options.out / "tokenizer.json"))
        tokenizer = train_tokenizer(self.options.seed, vocabulary=3072)
        save_tokenizer(tokenizer, self.options.out)
        return tokenizer

    def learn(self, batch: Batch) -> float:
        """One step on one batch; returns the loss per weighted token."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            wanted = batch.weights > 0
            logits = self.model(batch.inputs, batch.positions, wanted)
        weights = batch.weights[wanted]
        losses = F.cross_entropy(logits.float(), batch.targets[wanted], reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._learning_rate()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()

    def _learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / 100)
        falling = 0.02 + 0.49 * (1 + math.cos(math.pi * self.step / self.options.steps))
        return self.options.lr * warm * falling

    def save(self) -> None:
        """Write the model for use and the state for resuming."""
        folder = self.options.out
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            name: value.to(torch.bfloat16).contiguous() for name, value in self.model.state_dict().items()
        }
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        stop, end = (self.tokenizer.token_to_id(token) for token in (MESSAGE_END, END_OF_TEXT))
        config = self.model.shape.config(eos_token_id=stop, pad_token_id=end, bos_token_id=None)
        generation = {**SAMPLING, "eos_token_id": [stop, end], "pad_token_id": end}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        self.options.state.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        torch.save(state, self.options.state)

    def _load(self) -> None:
        state = torch.load(self.options.state)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    @torch.inference_mode()
    def complete(self, prompt: str, limit: int = 90) -> str:
        """Greedy continuation without a cache, only to show progress."""
        tokens = self.tokenizer.encode(prompt).ids
        start = len(tokens)
        ends = {self.tokenizer.token_to_id(token) for token in (MESSAGE_END, END_OF_TEXT)}
        while len(tokens) < start + limit:
            token = int(self.model(torch.tensor([tokens]))[0, -1].argmax())
            if token in ends:
                break
            tokens.append(token)
        return self.tokenizer.decode(tokens[start:], skip_special_tokens=False)

    def show_samples(self) -> None:
        """Print sample outputs of the current model."""
        renderer = Renderer()
        for question in SAMPLES:
            print(
                f"  > {question}\n    {self.complete(renderer.chat([{'role': 'user', 'content': question}]))}"
            )
        asked = renderer.chat([{"role": "user", "content": "How is the weather in Blorvik?"}], [WEATHER])
        print(f"  > weather in Blorvik, with a tool\n    {self.complete(asked)}")
        for start in ("Once upon a time", "The capital of France is", "Berth is"):
            print(f"  | {start}{self.complete(start, 40)}", flush=True)


def keep_freed_memory() -> None:
    """Tell glibc not to return freed pages: getting them again costs a third of each step."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):  # mmap_max, trim_threshold, top_pad
            libc.mallopt(option, value)


def main() -> None:
    """Train until the last step or the time limit, then save."""
    options = parse_options()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    trainer = Trainer(options)
    count = sum(p.numel() for p in trainer.model.parameters())
    print(f"{count:,} parameters, {trainer.tokenizer.get_vocab_size()} tokens in the vocabulary", flush=True)
    began, smooth = time.monotonic(), 0.0
    while trainer.step < options.steps:
        loss = trainer.learn(trainer.packer.batch(trainer.step, options.rows, options.length))
        smooth = loss if not smooth else 0.95 * smooth + 0.05 * loss
        seconds = time.monotonic() - began
        if trainer.step % 25 == 0:
            print(f"step {trainer.step} loss {smooth:.4f} {seconds:.0f} s", flush=True)
        if trainer.step % options.save_every == 0:
            trainer.save()
            trainer.show_samples()
        if options.minutes and seconds > options.minutes * 60:
            break
    trainer.save()
    trainer.show_samples()


if __name__ == "__main__":
    main()
