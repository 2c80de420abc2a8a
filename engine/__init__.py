"""The embedded engine: an OpenAI-compatible inference server on PyTorch. `python -m engine --model PATH`."""

__version__ = "0.1.0"
