"""Attention over the paged KV cache: where keys and values are kept, and how they are read."""
