"""A plug-in in a few lines: `/generate` for base models that were trained on instructions, not on chats."""

from __future__ import annotations

from api.protocols.generate import GenerateProtocol, GenerateRequest


class AlpacaProtocol(GenerateProtocol):
    """Shares the route of `generate`; serves models with `protocol: alpaca`."""

    name = "alpaca"

    def create_prompt(self, request: GenerateRequest) -> str:
        parts = [request.system_info] if request.system_info else []
        for asked, answered in self.history(request):
            parts.append(f"### Instruction:\n{asked}\n\n### Response:\n{answered}")
        parts.append(f"### Instruction:\n{request.prompt}\n\n### Response:\n")
        return "\n\n".join(parts)
