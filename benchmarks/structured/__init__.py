"""The cost of a JSON schema: `python -m benchmarks.structured`."""
