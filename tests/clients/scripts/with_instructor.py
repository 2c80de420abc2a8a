"""Instructor: an object by a JSON schema, and one by a tool."""

from __future__ import annotations

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field
from session import CITY, KEY, MODEL, OPENAI_URL, tell


class City(BaseModel):
    city: str = Field(max_length=40)


def formed(mode: instructor.Mode) -> City:
    client = instructor.from_openai(OpenAI(base_url=OPENAI_URL, api_key=KEY, max_retries=0), mode=mode)
    messages = [{"role": "user", "content": CITY}]
    return client.chat.completions.create(
        model=MODEL, messages=messages, response_model=City, max_tokens=200, temperature=0, max_retries=0
    )


tell(
    object=formed(instructor.Mode.JSON_SCHEMA).model_dump(),
    by_tool=formed(instructor.Mode.TOOLS).model_dump(),
)
