"""The engine's OpenAI-compatible HTTP server. Never touches torch."""
