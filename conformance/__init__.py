"""Tests over HTTP whether a server implements the OpenAI API as Berth's engine does. Works with any server.

Knows nothing of the engine and does not depend on a model's output. `python -m conformance --help`.
"""
