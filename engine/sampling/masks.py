"""Token masks of constrained rows: filled on the CPU while the model runs, then laid over the logits."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache

import torch

from engine.core.types import TokenConstraint
from engine.errors import EngineError, GenerationFailed
from engine.models.native.kernels import find_kernels

log = logging.getLogger(__name__)

_ALL_ALLOWED = -1  # 32 set bits
_WAIT_S = 0.02  # that a step waits for masks, at most
_LEAST_WAIT_S = 0.0001
_WAIT_ALONE_S = 0.01  # where there is nothing else to run; new requests wait as long


@dataclass(frozen=True, slots=True)
class Masks:
    """Which tokens some rows of logits may take."""

    rows: tuple[int, ...] = ()  # those that are restricted
    bits: torch.Tensor | None = None  # int32 [len(rows), ceil(vocab_size / 32)] on the CPU
    failures: Mapping[int, EngineError] = field(default_factory=dict)  # row → why its constraint can't go on
    late: Set[int] = frozenset()  # rows whose constraint isn't ready

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


class BitmaskFiller:
    """Asks constraints for their masks; who isn't ready in time sits the step out, and holds up nobody.

    Beside a GPU they are asked while the model runs. On a CPU the model has all cores, and what takes one
    away for a moment costs a step more than it saves: there masks are filled before it runs.
    """

    def __init__(self, vocab_size: int, *, beside_model: bool) -> None:
        self._num_words = -(-vocab_size // 32)
        self._beside_model = beside_model
        # How long a step waits for each, which those lose that were late, and have again after many in time.
        self._patience: weakref.WeakKeyDictionary[TokenConstraint, float] = weakref.WeakKeyDictionary()

    def start(self, constraints: Mapping[int, TokenConstraint]) -> Callable[[], Masks] | None:
        """Fill the masks of these rows; None if there are none. Nobody else may use them now.

        The masks are what the function returned returns, once they are filled.
        """
        if not constraints:
            return None
        if self._beside_model:
            for constraint in constraints.values():
                with suppress(EngineError):  # told when it is filled
                    constraint.wait(0.0)  # those that are asked elsewhere are asked now
            return lambda: self._fill(constraints)
        masks = self._fill(constraints)
        return lambda: masks

    def wait_for_any(self, constraints: Collection[TokenConstraint]) -> bool:
        """Whether one of them may be ready. If all were late, and still are, waits a little."""
        if not constraints or any(one not in self._patience or one.wait(0.0) for one in constraints):
            return True
        return any(one.wait(_WAIT_ALONE_S / len(constraints)) for one in constraints)

    @torch.inference_mode()
    def _fill(self, constraints: Mapping[int, TokenConstraint]) -> Masks:
        bits = torch.full((len(constraints), self._num_words), _ALL_ALLOWED, dtype=torch.int32)
        restricted: list[int] = []  # rows, parallel to the first of the bits
        failures: dict[int, EngineError] = {}
        late: set[int] = set()
        begun = time.monotonic()
        for row, constraint in constraints.items():
            try:
                if not self._wait(constraint, begun):
                    late.add(row)
                elif constraint.fill_mask(bits, len(restricted)):
                    restricted.append(row)
            except EngineError as error:
                failures[row] = error.with_traceback(None)  # which holds the masks
            except Exception as error:  # foreign code, for one client: the others in the batch go on
                log.exception("A constraint failed to say what may come next.")
                said = f"The output's constraint failed: {type(error).__name__}: {error}"
                failures[row] = GenerationFailed(said)
        if not restricted:
            return Masks(failures=failures, late=late)
        return Masks(tuple(restricted), bits[: len(restricted)], failures, late)

    def _wait(self, constraint: TokenConstraint, begun: float) -> bool:
        """All together wait as long as one."""
        patience = self._patience.get(constraint, _WAIT_S)
        is_ready = constraint.wait(max(0.0, begun + patience - time.monotonic()))
        if not is_ready:
            self._patience[constraint] = max(_LEAST_WAIT_S, patience / 2)
        elif patience < _WAIT_S:
            self._patience[constraint] = patience * 1.1
        return is_ready


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
