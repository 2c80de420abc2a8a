"""Token masks of constrained rows: filled on the CPU while the model runs, then laid over the logits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache

import torch

from engine.native.kernels import find_kernels
from engine.types import TokenConstraint

log = logging.getLogger(__name__)

_ALL_ALLOWED = -1  # 32 set bits


@dataclass(frozen=True, slots=True)
class Masks:
    """Which tokens some rows of logits may take."""

    rows: tuple[int, ...] = ()  # those that are restricted
    bits: torch.Tensor | None = None  # int32 [len(rows), ceil(vocab_size / 32)] on the CPU
    failures: Mapping[int, str] = field(default_factory=dict)  # row → why its constraint can't go on

    def apply(self, logits: torch.Tensor) -> None:
        """Make what isn't allowed impossible, in place; float32 [S, vocab_size]."""
        if self.bits is None:
            return
        rows = torch.tensor(self.rows, device=logits.device)
        if (kernels := find_kernels(logits.device.type, logits.dtype)) is not None and logits.is_contiguous():
            kernels.forbid_tokens(logits, rows, self.bits)
        else:
            bias = _bias(self.bits.to(logits.device))[:, : logits.shape[-1]]
            logits.index_add_(0, rows, bias)


class MaskFiller:
    """Asks constraints for their masks, in threads: they leave the interpreter to each other.

    Beside a GPU they do so while the model runs. On a CPU the model has all cores, and a thread that takes
    one away for a moment costs a step more than it saves: there masks are filled before it runs.
    """

    def __init__(self, vocab_size: int, *, num_threads: int, beside_model: bool) -> None:
        self._num_words = -(-vocab_size // 32)
        self._num_threads = num_threads
        self._beside_model = beside_model
        self._executor: ThreadPoolExecutor | None = None

    def start(self, constraints: Mapping[int, TokenConstraint]) -> Callable[[], Masks] | None:
        """Begin to fill the masks of these rows; None if there are none. Nobody else may use them now.

        The masks are what the function returned returns, once they are filled.
        """
        if not constraints:
            return None
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._num_threads, thread_name_prefix="engine-masks")
        bits = torch.full((len(constraints), self._num_words), _ALL_ALLOWED, dtype=torch.int32)
        places = list(enumerate(constraints.items()))
        parts = [places[first :: self._num_threads] for first in range(self._num_threads)]
        filling = [self._executor.submit(_fill, part, bits) for part in parts if part]

        def finish() -> Masks:
            restricted: dict[int, int] = {}  # row → its place among the bits
            failures: dict[int, str] = {}
            for future in filling:
                places_of, failed = future.result()
                restricted |= places_of
                failures |= failed
            if not restricted:
                return Masks(failures=failures)
            rows = tuple(sorted(restricted, key=restricted.__getitem__))
            filled = bits if len(rows) == len(bits) else bits[[restricted[row] for row in rows]]
            return Masks(rows, filled, failures)

        if not self._beside_model:
            wait(filling)
        return finish


@torch.inference_mode()
def _fill(
    places: Sequence[tuple[int, tuple[int, TokenConstraint]]], bits: torch.Tensor
) -> tuple[dict[int, int], dict[int, str]]:
    """The places of the rows that are restricted, and what failed, by row."""
    restricted: dict[int, int] = {}
    failures: dict[int, str] = {}
    for place, (row, constraint) in places:
        try:
            if constraint.fill_mask(bits, place):
                restricted[row] = place
        except Exception as error:  # foreign code, for one client: the others in the batch go on
            log.exception("A constraint failed to say what may come next.")
            failures[row] = f"The output's constraint failed: {type(error).__name__}: {error}"
    return restricted, failures


def _bias(bits: torch.Tensor) -> torch.Tensor:
    """0 where a bit is set, else minus infinity: int32 [R, words] → float32 [R, 32 * words].

    By a table of bytes, and added rather than used as a mask: a tenth of the time of PyTorch's masked_fill.
    """
    octets = bits.view(torch.uint8).flatten().int()  # little-endian, as all that we run on
    return _bias_of_byte(bits.device).index_select(0, octets).view(bits.shape[0], -1)


@cache
def _bias_of_byte(device: torch.device) -> torch.Tensor:
    """Float32 [256, 8]: for each value of a byte, of its bits from the lowest."""
    is_set = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return torch.zeros(256, 8).masked_fill_(is_set == 0, -torch.inf).to(device)
