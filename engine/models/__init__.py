"""Model architectures: their configuration, their layers put together, their checkpoints."""
