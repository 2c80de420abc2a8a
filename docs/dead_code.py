"""Finds code that only tests use, or nothing: `python -m docs.dead_code`; 1 if there is any.

Fields are left out: bodies declare fields that Berth accepts and does not read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from vulture import Vulture  # type: ignore[import-untyped]
from vulture.core import Item  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "app.py",
    "api",
    "benchmarks",
    "cli",
    "composition",
    "configs",
    "conformance",
    "docs",
    "engine",
    "instance_manager",
    "log_output",
    "package",
    "training",
)
# Called by a framework that the decorator registers them with.
_DECORATORS = ["@*router.*", "@field_validator", "@model_validator", "@group.*"]
# Used by a library that we subclass or configure, under the name that it knows.
_NAMES = [
    "*ForCausalLM",  # engine/models/registry.py names them by a string, so that it needs no torch
    "__annotations__",
    "__signature__",
    "capture_signals",  # uvicorn.Server
    "chunked_encoding",  # uvicorn's request-response cycle
    "decoder",  # tokenizers.Tokenizer
    "DOWNLOAD_CHUNK_SIZE",  # huggingface_hub.constants
    "expected_content_length",  # uvicorn's request-response cycle
    "handle_exit",  # uvicorn.Server
    "on_header",  # httptools' parsers
    "on_headers_complete",
    "on_message_begin",
    "on_message_complete",
    "on_url",
    "pause_writing",  # asyncio.Protocol
    "pre_tokenizer",  # tokenizers.Tokenizer
    "process_redirect",  # websockets.asyncio.client.connect
    "redirect_slashes",  # starlette.routing.Router
    "text_factory",  # sqlite3.Connection
    "total_requests",  # uvicorn.Server
    "waiting_for_100_continue",  # uvicorn's request-response cycle
    "warn_double_anchors",  # ruamel.yaml
    # Examples that plug-ins' authors copy.
    "AlpacaProtocol",
    "SummarizeProtocol",
    # What tests and scripts call to read settings as Berth does.
    "load_settings",
]


def find() -> Iterator[Item]:
    """Functions, methods, classes, properties and attributes that no code outside tests/ uses."""
    vulture = Vulture(ignore_decorators=_DECORATORS, ignore_names=_NAMES)
    vulture.scavenge([str(ROOT / package) for package in PACKAGES])
    for item in vulture.get_unused_code(min_confidence=60):
        if item.typ != "variable":
            yield item


def main() -> int:
    found = list(find())
    for item in found:
        sys.stdout.write(f"{item.filename.relative_to(ROOT)}:{item.first_lineno}: {item.message}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
