"""The speed of the embedded engine, compared with vLLM if available."""
