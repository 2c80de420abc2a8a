"""all-MiniLM-L6-v2 over HTTP, with the stock `openai` client, against sentence-transformers' own recipe."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import torch.nn.functional as F
import transformers

from tests.engine.server.serving import Running

TOLERANCE = 1e-4
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Ein Satz auf Deutsch, mit Umlauten: äöü.",
    "x",
    "Paged attention keeps keys and values in blocks. " * 20,
    "",
    "日本語のテキスト 🙂",
    "x",
]


@pytest.fixture(scope="module")
def expected(minilm: Path) -> list[torch.Tensor]:
    """transformers' model, mean pooling, normalised, as modules.json says: one sentence at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm)
    vectors = []
    for sentence in SENTENCES:
        inputs = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=256)
        with torch.inference_mode():
            vectors.append(F.normalize(model(**inputs).last_hidden_state[0].mean(dim=0), dim=0))
    return vectors


def assert_near(ours: Sequence[float], theirs: torch.Tensor) -> None:
    assert (torch.tensor(ours) - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize("encoding_format", [openai.omit, "float", "base64"])
def test_vectors_equal_those_of_sentence_transformers(
    encoding_format: Any, minilm_server: Running, expected: list[torch.Tensor]
) -> None:
    """In a batch and alone; the client requests base64 by default."""
    options = {"truncate_prompt_tokens": -1}
    with minilm_server.openai() as client:
        answer = client.embeddings.create(
            model="minilm", input=SENTENCES, encoding_format=encoding_format, extra_body=options
        )
        assert [item.index for item in answer.data] == list(range(len(SENTENCES)))
        for item, sentence, vector in zip(answer.data, SENTENCES, expected, strict=True):
            assert_near(decoded(item.embedding), vector)
            alone = client.embeddings.create(
                model="minilm", input=sentence, encoding_format=encoding_format, extra_body=options
            )
            assert_near(decoded(alone.data[0].embedding), vector)


def decoded(embedding: Any) -> list[float]:
    """The client does not decode base64 that was requested explicitly."""
    if isinstance(embedding, str):
        raw = base64.b64decode(embedding)
        return list(struct.unpack(f"={len(raw) // 4}f", raw))
    return list(embedding)


def test_tokens_give_the_same_vectors_as_text(
    minilm: Path, minilm_server: Running, expected: list[torch.Tensor]
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    token_ids = [tokenizer(sentence)["input_ids"] for sentence in SENTENCES[:3]]
    with minilm_server.openai() as client:
        answer = client.embeddings.create(model="minilm", input=token_ids)
        single = client.embeddings.create(model="minilm", input=token_ids[0])
    for item, vector in zip(answer.data, expected[:3], strict=True):
        assert_near(item.embedding, vector)
    assert_near(single.data[0].embedding, expected[0])
    num_tokens = sum(map(len, token_ids))
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (num_tokens, num_tokens)


def test_similar_texts_score_higher(minilm_server: Running, expected: list[torch.Tensor]) -> None:
    with minilm_server.http() as client:
        body = {"query": SENTENCES[0], "documents": [SENTENCES[1], "A fox leaps over a dog.", SENTENCES[2]]}
        ranked = client.post("/rerank", json=body).json()["results"]
        assert ranked[0]["index"] == 1
        body = {"text_1": SENTENCES[0], "text_2": [SENTENCES[1], SENTENCES[0]]}
        scores = [item["score"] for item in client.post("/score", json=body).json()["data"]]
    assert scores[0] == pytest.approx(float(expected[0] @ expected[1]), abs=TOLERANCE)
    assert scores[1] == pytest.approx(1, abs=TOLERANCE)


def test_many_clients_at_once(minilm_server: Running, expected: list[torch.Tensor]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with minilm_server.openai() as client, ThreadPoolExecutor(16) as pool:

        def ask(number: int) -> list[float]:
            sentence = SENTENCES[number % 3]
            return list(client.embeddings.create(model="minilm", input=sentence).data[0].embedding)

        for number, vector in enumerate(pool.map(ask, range(48))):
            assert_near(vector, expected[number % 3])
    assert minilm_server.engine.num_unfinished == 0
