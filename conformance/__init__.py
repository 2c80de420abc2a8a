"""Does a server speak the OpenAI API as Berth's engine promises it? Asked over HTTP alone, of any server.

Knows nothing of the engine: no import of it, no wording of any model. `python -m conformance --help`.
"""
