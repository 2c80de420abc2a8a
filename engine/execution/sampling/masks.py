"""Token bitmasks of constrained rows: filled on the CPU while the model runs, then applied to the logits."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, field
from functools import cache

import torch

from engine.core.types import TokenConstraint
from engine.errors import EngineError, GenerationFailed
from engine.models.native.kernels import find_kernels

log = logging.getLogger(__name__)

_ALL_ALLOWED = -1  # 32 set bits
_WAIT_S = 0.02  # a step waits at most this long for masks
_LEAST_WAIT_S = 0.0001
_WAIT_ALONE_S = 0.01  # if there is nothing else to run; new requests wait as long


@dataclass(frozen=True, slots=True)
class Masks:
    """Which tokens are allowed in some rows of logits."""

    rows: tuple[int, ...] = ()  # the restricted rows
    bits: torch.Tensor | None = None  # int32 [len(rows), ceil(vocab_size / 32)] on the CPU
    failures: Mapping[int, EngineError] = field(default_factory=dict)  # row → why its constraint failed
    late: Set[int] = frozenset()  # rows whose constraint isn't ready

    def apply(self, logits: torch.Tensor) -> None:
        """Make forbidden tokens impossible in `logits`, float32 [S, vocab_size], in place."""
        if self.bits is None:
            return
        rows = torch.tensor(self.rows, device=logits.device)
        if (kernels := find_kernels(logits.device.type, logits.dtype)) is not None and logits.is_contiguous():
            kernels.forbid_tokens(logits, rows, self.bits)
        else:
            bias = _bias(self.bits.to(logits.device))[:, : logits.shape[-1]]
            logits.index_add_(0, rows, bias)


class BitmaskFiller:
    """Fills the masks of constraints; a late constraint makes its sequence skip the step, delaying no other.

    Beside a GPU, masks are filled while the model runs. On a CPU the model uses all cores, and taking one
    away for a moment costs a step more than it saves: there masks are filled before the model runs.
    """

    def __init__(self, vocab_size: int, *, beside_model: bool) -> None:
        self._num_words = -(-vocab_size // 32)
        self._beside_model = beside_model
        # How long a step waits for each: halved when it was late, and restored after many masks in time.
        self._timeouts: weakref.WeakKeyDictionary[TokenConstraint, float] = weakref.WeakKeyDictionary()

    def start(self, constraints: Mapping[int, TokenConstraint]) -> Callable[[], Masks] | None:
        """Start to fill the masks of these rows; None if there are no rows. Nothing else may use them now.

        Returns a function that waits for the masks and returns them.
        """
        if not constraints:
            return None
        if self._beside_model:
            return lambda: self._fill(constraints)
        masks = self._fill(constraints)
        return lambda: masks

    def wait_for_any(self, constraints: Collection[TokenConstraint]) -> bool:
        """Whether one of them may be ready. If all were late, and still are, waits a little."""
        if not constraints or any(c not in self._timeouts or c.wait(0.0) for c in constraints):
            return True
        return any(constraint.wait(_WAIT_ALONE_S / len(constraints)) for constraint in constraints)

    @torch.inference_mode()
    def _fill(self, constraints: Mapping[int, TokenConstraint]) -> Masks:
        bits = torch.full((len(constraints), self._num_words), _ALL_ALLOWED, dtype=torch.int32)
        restricted: list[int] = []  # rows, parallel to the first rows of `bits`
        failures: dict[int, EngineError] = {}
        late: set[int] = set()
        started = time.monotonic()
        for row, constraint in constraints.items():
            try:
                if not self._wait(constraint, started):
                    late.add(row)
                elif constraint.fill_mask(bits, len(restricted)):
                    restricted.append(row)
            except EngineError as error:
                failures[row] = error.with_traceback(None)  # the traceback references the masks
            except Exception as error:  # foreign code, for one client: the rest of the batch continues
                log.exception("A constraint failed to fill its mask.")
                message = f"The output's constraint failed: {type(error).__name__}: {error}"
                failures[row] = GenerationFailed(message)
        if not restricted:
            return Masks(failures=failures, late=late)
        return Masks(tuple(restricted), bits[: len(restricted)], failures, late)

    def _wait(self, constraint: TokenConstraint, started: float) -> bool:
        """The waits of all constraints overlap: together they take as long as one."""
        timeout = self._timeouts.get(constraint, _WAIT_S)
        is_ready = constraint.wait(max(0.0, started + timeout - time.monotonic()))
        if not is_ready:
            self._timeouts[constraint] = max(_LEAST_WAIT_S, timeout / 2)
        elif timeout < _WAIT_S:
            self._timeouts[constraint] = timeout * 1.1
        return is_ready


def _bias(bits: torch.Tensor) -> torch.Tensor:
    """0 where a bit is set, else minus infinity: int32 [R, words] → float32 [R, 32 * words].

    Uses a table of bytes, and is added, not used as a mask: a tenth of the time of PyTorch's masked_fill.
    """
    octets = bits.view(torch.uint8).flatten().int()  # little-endian, like all machines that we run on
    return _bias_of_byte(bits.device).index_select(0, octets).view(bits.shape[0], -1)


@cache
def _bias_of_byte(device: torch.device) -> torch.Tensor:
    """Float32 [256, 8]: the bias for each bit, from the lowest, of each value of a byte."""
    is_set = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return torch.zeros(256, 8).masked_fill_(is_set == 0, -torch.inf).to(device)
