"""Back-pressure on pipelined requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sized

from uvicorn.protocols.http.flow_control import FlowControl

_MAX_WAITING = 16  # pipelined requests behind the current one; those of the last read come on top


class PipelineFlow(FlowControl):
    """Resumes reading only while few pipelined requests wait: uvicorn's pipeline is unbounded."""

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if len(self._pipeline) <= _MAX_WAITING:
            super().resume_reading()
