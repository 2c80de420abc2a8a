"""The server of a model that pools: embeddings, scores and reranking."""
