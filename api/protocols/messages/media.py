"""Images and documents of Anthropic's messages as parts of a chat message. Pure."""

from __future__ import annotations

from typing import Any

from api.protocols.foreign_text import readable_text
from api.protocols.messages.request import Block, invalid, string_of


def image_part(block: Block, path: str) -> dict[str, Any]:
    """Raises InvalidProtocolRequest for an image in the provider's own file store."""
    return {"type": "image_url", "image_url": {"url": _url(block, "image", path)}}


def file_part(block: Block, path: str) -> str | dict[str, Any]:
    """A document: its text if it has one, else a file. Raises InvalidProtocolRequest."""
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if kind in ("text", "content") or not isinstance(source, dict):
        return readable_text({name: block.get(name) for name in ("title", "context", "source")})
    if kind == "base64":
        data = {"filename": str(block.get("title") or "document.pdf"), "file_data": _url(block, "file", path)}
        return {"type": "file", "file": data}
    raise invalid(
        f"{path}.source.type", f"documents of source {kind!r} are not supported; send base64 or text"
    )


def _url(block: Block, what: str, path: str) -> str:
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if not isinstance(source, dict) or kind not in ("base64", "url"):
        raise invalid(f"{path}.source", f"a source of type {kind!r} is not supported; send base64 or a url")
    if kind == "url":
        return string_of(source, "url", f"{path}.source")
    default = "image/png" if what == "image" else "application/pdf"
    media_type = string_of(source, "media_type", f"{path}.source", default)
    return f"data:{media_type};base64,{string_of(source, 'data', f'{path}.source')}"
