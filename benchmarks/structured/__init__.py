"""What a JSON schema costs: `python -m benchmarks.structured`."""
