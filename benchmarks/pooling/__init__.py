"""Embeddings per second, beside plain transformers."""
