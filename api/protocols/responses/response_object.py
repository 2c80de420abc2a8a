"""A response before it has any output: it repeats the request's fields, as OpenAI's does. Pure."""

from __future__ import annotations

import time
from typing import Any

from api.protocols.responses.request import ResponsesRequest
from api.protocols.responses.toolbox import runnable


def new_response(name: str, request: ResponsesRequest, created_at: int | None = None) -> dict[str, Any]:
    return {
        **begun_response(name, request.model, created_at or int(time.time())),
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": (request.model_extra or {}).get("max_tool_calls"),
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": (request.model_extra or {}).get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None, **(request.reasoning or {})},
        "safety_identifier": (request.model_extra or {}).get("safety_identifier"),
        "store": request.stores,
        "temperature": request.temperature,
        "text": {"format": {"type": "text"}, **(request.text or {})},
        "tool_choice": request.tool_choice or "auto",
        "tools": runnable(request.tools or []),
        "top_p": request.top_p,
        "truncation": request.truncation or "disabled",
        "user": request.user,
    }


def begun_response(name: str, model: str | None, created_at: int) -> dict[str, Any]:
    """The fields that are known before the request has been read."""
    return {
        "id": name,
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
    }
