"""What all client scripts of the matrix share: where Berth is, what to ask, and how to tell what came."""

from __future__ import annotations

import json
import os
from typing import Any

BASE_URL = os.environ["BASE_URL"]
OPENAI_URL = f"{BASE_URL}/v1"
KEY = os.environ["API_KEY"]
MODEL = os.environ["MODEL"]
VECTORS = os.environ.get("EMBEDDING_MODEL", "vectors")

PLAIN = "What is Berth?"  # the answer names it
STORY = "Tell me a story."
WEATHER = "What is the weather in Oslo?"  # the answer is a call of get_weather
CITY = "Which is your favourite city?"
MAX_TOKENS = 40

asked: list[str] = []  # the cities that the model asked for


def get_weather(city: str) -> str:
    """Weather of a city.

    Args:
        city: The city.
    """
    asked.append(city)
    return f"12 degrees in {city}"


def tell(**got: Any) -> None:
    """Print what the client got, as the last line."""
    print(json.dumps(got | ({"asked": asked} if asked else {})))
