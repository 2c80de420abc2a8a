"""How much one grammar may cost, so that it holds up nobody else."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SOURCE_CHARS = 256 * 1024
WRITE_S = 5.0  # of processor time, to read one schema and write its grammar
MAX_WRITER_BYTES = 512 * 2**20  # address space for that, beyond what the process has at its start
SLOW_MASKS_S = 5.0  # of processor time, for all slow masks of one sequence

# The compiler's own limits, for one grammar, and for each of its steps.
MAX_SYMBOLS = 500_000
MAX_LEXER_STATES = 50_000  # a kilobyte or two each
MAX_ROW_ITEMS = 1000  # ways to read a text so far: for a JSON object, its properties that may come next
MAX_STEP_ITEMS = 20_000  # for one mask
LEXER_FUEL = 1_000_000  # about 20 ms, to compile
STEP_LEXER_FUEL = 200_000  # about 15 ms, for one mask


@dataclass(frozen=True, slots=True)
class Limits:
    """Processor time."""

    write_s: float = WRITE_S
    slow_masks_s: float = SLOW_MASKS_S
