"""What engines share and budgets count: memory of the host and of GPUs, and instance slots."""

from __future__ import annotations

Device = str  # "cpu" = host memory; else a GPU's UUID
HOST: Device = "cpu"
SLOT: Device = "slot"  # an instance slot (a port), not bytes: one per instance with a process, also asleep
