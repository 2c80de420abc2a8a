"""The formats of tool calls. A new one is described in its parser's file and takes one line here."""

from __future__ import annotations

from engine.text.parsers.hermes import HERMES
from engine.text.parsers.llama_json import LLAMA_JSON
from engine.text.parsers.mistral import MISTRAL
from engine.text.parsers.qwen_coder import QWEN_CODER
from engine.text.parsers.tool_format import ToolFormat

TOOL_FORMATS: tuple[ToolFormat, ...] = (
    QWEN_CODER,
    HERMES,
    MISTRAL,
    LLAMA_JSON,
)
"""In the order in which a chat template is compared with them: its first match is the model's format."""
