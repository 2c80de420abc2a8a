"""The `llm` command with a model of its extra-openai-models.yaml: an answer and a stream."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from session import KEY, MODEL, OPENAI_URL, PLAIN, STORY, tell

ENTRY = f"- {{model_id: berth, model_name: {MODEL}, api_base: '{OPENAI_URL}', api_key_name: berth}}\n"


def run(home: Path, *words: str) -> str:
    command = [Path(sys.executable).with_name("llm"), "-m", "berth", *words, "--key", KEY, "-n"]
    environment = {**os.environ, "LLM_USER_PATH": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


with tempfile.TemporaryDirectory() as folder:
    home = Path(folder)
    (home / "extra-openai-models.yaml").write_text(ENTRY)
    limit = ("-o", "max_tokens", "40")
    tell(plain=run(home, PLAIN, "--no-stream", *limit), streamed=run(home, STORY, *limit))
