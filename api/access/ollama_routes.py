"""Ollama's routes by the access that they need; api/auth.py grants it."""

from __future__ import annotations

# Like `GET /v1/models`: they tell about the models that the caller's key may use.
FOR_REQUESTS = frozenset({b"/api/tags", b"/api/show", b"/api/ps", b"/api/version"})
# An admin's, as they change what is on this machine, or would.
FOR_ADMINS = frozenset(
    {b"/api/pull", b"/api/delete", b"/api/copy", b"/api/create", b"/api/push", b"/api/blobs"}
)
