"""Shared by the whole API: ASGI types, headers, bodies and errors. Knows nothing of instances."""
