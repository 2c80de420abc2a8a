"""API keys, their callers, and the engines' routes that request keys may use."""
