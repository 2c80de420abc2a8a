"""Models that turn texts into vectors or scores without generating: plans, batches and their thread."""
