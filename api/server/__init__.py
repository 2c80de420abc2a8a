"""The HTTP server: uvicorn's protocol with limits, and a fast path for short requests."""
