"""Finds code that only tests use, or nothing: `python -m docs.dead_code`; 1 if there is any.

Fields are left out: bodies declare fields that Berth accepts and does not read, and metrics are read by name.
"""

from __future__ import annotations

import re
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
    "__annotations__",
    "__dir__",  # of modules
    "__signature__",
    "atexit",  # weakref.finalize
    "capture_signals",  # uvicorn.Server
    "chunked_encoding",  # uvicorn's request-response cycle
    "_timeout",  # torch.distributed's options of groups
    "decoder",  # tokenizers.Tokenizer
    "DOWNLOAD_CHUNK_SIZE",  # huggingface_hub.constants
    "expected_content_length",  # uvicorn's request-response cycle
    "handle_exit",  # uvicorn.Server
    "normalizer",  # tokenizers.Tokenizer
    "num_embeddings",  # torch.nn.Embedding
    "on_header",  # httptools' parsers
    "on_headers_complete",
    "on_message_begin",
    "on_message_complete",
    "on_url",
    "padding_idx",  # torch.nn.Embedding
    "pause_writing",  # asyncio.Protocol
    "post_processor",  # tokenizers.Tokenizer
    "pre_tokenizer",  # tokenizers.Tokenizer
    "process_redirect",  # websockets.asyncio.client.connect
    "redirect_slashes",  # starlette.routing.Router
    "rootRank",  # torch.distributed.GatherOptions
    "special_token_ids",  # llguidance.TokenizerWrapper
    "text_factory",  # sqlite3.Connection
    "total_requests",  # uvicorn.Server
    "waiting_for_100_continue",  # uvicorn's request-response cycle
    "warn_double_anchors",  # ruamel.yaml
    # What programs that import the engine use.
    "LLM",
    "num_classes",
    # Examples that plug-ins' authors copy.
    "AlpacaProtocol",
    "SummarizeProtocol",
    # What tests and scripts call to read settings as Berth does.
    "load_settings",
]


# A class named as "module:class", so that who names it needs no torch.
_BY_STRING = re.compile(r':(\w+)"')


def find() -> Iterator[Item]:
    """Functions, methods, classes, properties and attributes that no code outside tests/ uses."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "engine").rglob("*.py"))
    named = [name for source in sources for name in _BY_STRING.findall(source)]
    vulture = Vulture(ignore_decorators=_DECORATORS, ignore_names=[*_NAMES, *named])
    vulture.scavenge([str(ROOT / package) for package in PACKAGES])
    declared = {item.name for item in vulture.defined_vars}
    for item in vulture.get_unused_code(min_confidence=60):
        is_field = item.typ == "variable" or (item.typ == "attribute" and item.name in declared)
        if not is_field:
            yield item


def main() -> int:
    found = list(find())
    for item in found:
        sys.stdout.write(f"{item.filename.relative_to(ROOT)}:{item.first_lineno}: {item.message}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
