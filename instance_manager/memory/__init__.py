"""How much memory there is, what holds it, how much a model will need, and what to evict for it."""
