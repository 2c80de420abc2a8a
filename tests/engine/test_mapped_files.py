"""Mapped files that were read: their memory is released, and they read the same afterwards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from engine.checkpoint.mapped_files import forget_pages
from engine.models.layers.embedding import Embedding
from engine.models.weights import Checkpoint, load_weights

_ROWS, _WIDTH = 1 << 12, 1 << 10


class Table(torch.nn.Module):
    """A model whose only layer stays mapped from the file."""

    FUSED: ClassVar[dict[str, tuple[str, ...]]] = {}
    UNUSED: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.table = Embedding(_ROWS, _WIDTH)

    def shared_weights(self) -> dict[str, str]:
        return {}


def resident_bytes(path: Path) -> int:
    """This file's resident memory in this process, from /proc/self/smaps."""
    total, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            is_ours = line.endswith(str(path))
        elif is_ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_a_checkpoint_are_released(tmp_path: Path) -> None:
    path = tmp_path.resolve() / "model.safetensors"
    stored = torch.randn(_ROWS, _WIDTH)
    save_file({"table.weight": stored}, path)
    model = Table()
    with Checkpoint(tmp_path) as checkpoint:
        read = checkpoint.tensor("table.weight")
        assert torch.equal(read, stored)
        assert resident_bytes(path) >= stored.nbytes
        load_weights(model, checkpoint)
    assert resident_bytes(path) < stored.nbytes / 8
    assert torch.equal(model.table(torch.arange(_ROWS)), stored)
    assert resident_bytes(path) >= stored.nbytes
    forget_pages([path.with_name("model")])
    assert resident_bytes(path) >= stored.nbytes, "another file's stay"
