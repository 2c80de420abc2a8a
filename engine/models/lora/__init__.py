"""LoRA adapters: y = x Wᵀ + s (x Aᵀ) Bᵀ, with another A, B and s for each sequence of a batch."""
