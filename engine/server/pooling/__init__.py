"""The server of a pooling model: embeddings, scores and reranking."""
