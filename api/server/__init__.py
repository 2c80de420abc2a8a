"""The HTTP server in front: uvicorn's protocol with limits, and a fast path for short requests."""
