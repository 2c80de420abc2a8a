"""Embeddings per second, compared with plain transformers."""
