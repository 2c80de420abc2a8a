"""Scheduling and its vocabulary, free of torch: requests, batches, blocks, the engine's loop."""
