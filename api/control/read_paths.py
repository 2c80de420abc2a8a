"""The control routes that a key for requests may read: each shows only the models that the key may use."""

from __future__ import annotations

# One that ends in a slash: everything below.
READ_PATHS = frozenset(
    {
        b"/models",
        b"/models/sse",
        b"/props",
        b"/slots",
        b"/running",
        b"/api/v0/models",
        b"/api/v0/models/",
        b"/api/v1/models",
    }
)
