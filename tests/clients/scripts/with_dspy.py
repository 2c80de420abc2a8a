"""DSPy: a language model by chat, and an embedder."""

from __future__ import annotations

import dspy
from session import KEY, MAX_TOKENS, MODEL, OPENAI_URL, PLAIN, VECTORS, tell

common = {"api_base": OPENAI_URL, "api_key": KEY, "cache": False}
model = dspy.LM(f"openai/{MODEL}", **common, temperature=0, max_tokens=MAX_TOKENS, num_retries=0)
vectors = dspy.Embedder(f"openai/{VECTORS}", api_base=OPENAI_URL, api_key=KEY, caching=False)
tell(plain=model(PLAIN)[0], embedding=vectors(["a ship"]).shape[1])
