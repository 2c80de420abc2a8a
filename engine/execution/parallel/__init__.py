"""One model on several devices: each rank, a process, holds a share of every layer (tensor parallelism)."""
