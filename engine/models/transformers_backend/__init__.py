"""Runs any decoder of transformers that supports its attention interface, on the engine's KV cache.

The family's own code computes; only attention, and layers that are proven equal to ours, are replaced.
"""
