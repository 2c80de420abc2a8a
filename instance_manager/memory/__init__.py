"""How much memory there is, who holds it, what a model will need, and whom to evict for it."""
