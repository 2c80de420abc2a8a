"""The HTTP server: a protocol on httptools with limits, and a fast path for short requests."""
