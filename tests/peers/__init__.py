"""Berth with engines of others, for real. Outside `make test`: `make test-vllm`, `make test-llama-cpp`."""
