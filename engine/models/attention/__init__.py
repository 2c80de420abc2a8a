"""Attention over the paged KV cache: how keys and values are stored and read."""
