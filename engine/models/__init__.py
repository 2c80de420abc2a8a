"""Model architectures: their configuration, layers and checkpoints."""
