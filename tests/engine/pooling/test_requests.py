"""A pooling server's requests, responses and errors, over HTTP."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from engine.server.app.wrong_runner_routes import GENERATION_PATHS, POOLING_PATHS
from tests.engine.pooling.serving import pooling
from tests.engine.pooling.tiny_poolers import CONTEXT, logits_of, make_pooler, write_modules
from tests.engine.server.serving import Running

TOLERANCE = 1e-4
MATRYOSHKA = {"matryoshka_dimensions": [8, 16, 32]}
PROMPTS = {"task_instructions": {"query": "find: "}}


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    root = tmp_path_factory.mktemp("embedder")
    directory = write_modules(make_pooler("bert", root, **MATRYOSHKA, **PROMPTS), "mean_tokens")
    with pooling(directory) as server, server.http() as client:
        yield client


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Path]]:
    directory = make_pooler("xlm-cross", tmp_path_factory.mktemp("cross"))
    with pooling(directory) as server, server.http() as client:
        yield client, directory


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refuse(client: httpx.Client, path: str, status: int = 400, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


# Vectors


def test_an_embedding_answers_as_openai_does(embedder: httpx.Client) -> None:
    answer = post(embedder, "/v1/embeddings", input=["abc", "d"], model="fake", user="me")
    assert answer["id"].startswith("embd-")
    assert (answer["object"], answer["model"]) == ("list", "fake")
    assert [(item["object"], item["index"]) for item in answer["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
    ]
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4, "completion_tokens": 0}


def test_binary_vectors(embedder: httpx.Client) -> None:
    def vector(**options: Any) -> Any:
        return post(embedder, "/v1/embeddings", input="abc", **options)["data"][0]["embedding"]

    numbers = vector()
    for dtype, letter, tolerance in (("float32", "f", 0), ("float16", "e", 1e-3)):
        for endianness, sign in (("little", "<"), ("big", ">"), ("native", "=")):
            raw = base64.b64decode(vector(encoding_format="base64", embed_dtype=dtype, endianness=endianness))
            assert list(struct.unpack(f"{sign}32{letter}", raw)) == pytest.approx(numbers, abs=tolerance)


def test_dimensions_of_a_matryoshka_model(embedder: httpx.Client) -> None:
    whole = post(embedder, "/v1/embeddings", input="abc")["data"][0]["embedding"]
    short = post(embedder, "/v1/embeddings", input="abc", dimensions=8)["data"][0]["embedding"]
    expected = torch.nn.functional.normalize(torch.tensor(whole)[:8], dim=0)
    assert short == pytest.approx(expected.tolist(), abs=TOLERANCE)
    assert "trained for 8, 16, 32" in refuse(embedder, "/v1/embeddings", input="a", dimensions=9)["message"]
    assert "vectors of 32" in refuse(embedder, "/v1/embeddings", input="a", dimensions=64)["message"]


def test_vectors_need_not_be_normalised(embedder: httpx.Client) -> None:
    raw = post(embedder, "/pooling", input="abc", use_activation=False)["data"][0]["data"]
    unit = post(embedder, "/v1/embeddings", input="abc")["data"][0]["embedding"]
    length = sum(value * value for value in raw) ** 0.5
    assert abs(length - 1) > 0.01
    assert [value / length for value in raw] == pytest.approx(unit, abs=TOLERANCE)


def test_a_conversation_is_rendered_first(embedder: httpx.Client) -> None:
    messages = [{"role": "user", "content": "abc"}]
    text = post(embedder, "/v1/embeddings", input="<user>abc\n", add_special_tokens=False)
    for body in ({"messages": messages}, {"input": messages}):
        answer = post(embedder, "/v1/embeddings", **body)
        assert answer["data"] == text["data"]


def test_pooling_is_the_models_own_task(embedder: httpx.Client) -> None:
    answer = post(embedder, "/pooling", input=["a", "b"], task="embed")
    assert answer["id"].startswith("pool-")
    assert [item["object"] for item in answer["data"]] == ["pooling", "pooling"]
    embedded = post(embedder, "/v1/embeddings", input=["a", "b"])
    assert [item["data"] for item in answer["data"]] == [item["embedding"] for item in embedded["data"]]
    assert refuse(embedder, "/pooling", input="a", task="classify")["param"] == "task"


def test_long_inputs_are_refused_with_both_numbers_or_truncated(embedder: httpx.Client) -> None:
    error = refuse(embedder, "/v1/embeddings", input=["a", "b" * (CONTEXT + 6)])
    assert error["param"] == "input[1]"
    assert error["code"] == "context_length_exceeded"
    words = (
        f"maximum context length is {CONTEXT} tokens. However, you requested {CONTEXT + 6} tokens in input[1]"
    )
    assert words in error["message"]
    text = "ab" * CONTEXT
    for asked, kept in ((-1, CONTEXT), (5, 5)):
        cut = post(embedder, "/v1/embeddings", input=text, truncate_prompt_tokens=asked)
        assert cut["usage"]["prompt_tokens"] == kept
        assert cut["data"] == post(embedder, "/v1/embeddings", input=text[:kept])["data"]
    left = post(embedder, "/v1/embeddings", input=text, truncate_prompt_tokens=5, truncation_side="left")
    assert left["data"] == post(embedder, "/v1/embeddings", input=text[-5:])["data"]
    for wrong in (0, CONTEXT + 1, -2):
        error = refuse(embedder, "/v1/embeddings", input=text, truncate_prompt_tokens=wrong)
        assert error["param"] == "truncate_prompt_tokens"


def test_cohere_embeds(embedder: httpx.Client) -> None:
    kinds = ["float", "base64", "ubinary", "binary"]
    answer = post(embedder, "/v2/embed", texts=["abc", "d"], embedding_types=kinds, model="fake")
    floats = answer["embeddings"]["float"]
    alone = post(embedder, "/v1/embeddings", input="abc")["data"][0]["embedding"]
    assert floats[0] == pytest.approx(alone, abs=TOLERANCE)
    packed = base64.b64decode(answer["embeddings"]["base64"][1])
    assert list(struct.unpack("<32f", packed)) == floats[1]
    bits = "".join(f"{byte:08b}" for byte in answer["embeddings"]["ubinary"][0])
    assert bits == "".join("1" if value >= 0 else "0" for value in floats[0])
    signed, unsigned = answer["embeddings"]["binary"][0], answer["embeddings"]["ubinary"][0]
    assert signed == [byte - 128 for byte in unsigned]
    assert answer["meta"]["billed_units"] == {"input_tokens": 4}
    assert answer["texts"] == ["abc", "d"]


def test_cohere_input_types_are_the_models_prompts(embedder: httpx.Client) -> None:
    answer = post(embedder, "/v2/embed", texts=["abc"], input_type="query")
    assert (
        answer["embeddings"]["float"][0]
        == post(embedder, "/v1/embeddings", input="find: abc")["data"][0]["embedding"]
    )
    assert refuse(embedder, "/v2/embed", texts=["abc"], input_type="image")["param"] == "input_type"


def test_cohere_truncates_unless_disabled(embedder: httpx.Client) -> None:
    text = "ab" * CONTEXT
    start = post(embedder, "/v2/embed", texts=[text], truncate="START", max_tokens=4)["embeddings"]["float"]
    assert start == post(embedder, "/v2/embed", texts=[text[-4:]])["embeddings"]["float"]
    assert post(embedder, "/v2/embed", texts=[text])["meta"]["billed_units"]["input_tokens"] == CONTEXT
    assert refuse(embedder, "/v2/embed", texts=[text], truncate="NONE")["param"] == "texts"
    short = refuse(embedder, "/v2/embed", texts=["abcd"], truncate="NONE", max_tokens=2)
    assert short["param"] == "max_tokens"
    assert refuse(embedder, "/v2/embed", texts=["a"], inputs=[])["param"] is not None
    assert refuse(embedder, "/v2/embed", images=["data:"])["param"] == "images"


# Scores


def pair_logits(directory: Path, left: str, right: str) -> float:
    from engine.text.tokenizer import load_tokenizer

    encoding = load_tokenizer(directory).fast.encode(left, right)
    return float(logits_of(directory, encoding.ids)[0])


def test_a_cross_encoder_reads_pairs(cross_encoder: tuple[httpx.Client, Path]) -> None:
    client, directory = cross_encoder
    answer = post(client, "/v1/score", text_1="abc", text_2=["de", "f"])
    assert answer["id"].startswith("score-")
    assert [(item["object"], item["index"]) for item in answer["data"]] == [("score", 0), ("score", 1)]
    expected = [torch.tensor(pair_logits(directory, "abc", text)).sigmoid().item() for text in ("de", "f")]
    assert [item["score"] for item in answer["data"]] == pytest.approx(expected, abs=TOLERANCE)
    assert answer["usage"]["prompt_tokens"] == 5 + 4
    raw = post(client, "/score", text_1="abc", text_2="de", use_activation=False)["data"][0]["score"]
    assert raw == pytest.approx(pair_logits(directory, "abc", "de"), abs=TOLERANCE)


@pytest.mark.parametrize("names", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2")])
def test_pairs_under_other_names(names: tuple[str, str], cross_encoder: tuple[httpx.Client, Path]) -> None:
    client, _ = cross_encoder
    expected = post(client, "/score", text_1=["abc", "b"], text_2=["de", "f"])["data"]
    first, second = names
    assert post(client, "/score", **{first: ["abc", "b"], second: ["de", "f"]})["data"] == expected


@pytest.mark.parametrize(("left", "right"), [(["a", "b"], ["c"]), (["a", "b"], ["c", "d", "e"]), ([], ["c"])])
def test_pairs_that_do_not_match_are_refused(
    left: list[str], right: list[str], cross_encoder: tuple[httpx.Client, Path]
) -> None:
    assert refuse(cross_encoder[0], "/score", text_1=left, text_2=right)["param"] in ("text_1", "text_2")


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_ranked(path: str, cross_encoder: tuple[httpx.Client, Path]) -> None:
    client, _ = cross_encoder
    documents: list[Any] = ["de", {"text": "f"}, {"content": [{"type": "text", "text": "gh a"}]}, "de"]
    answer = post(client, path, query="abc", documents=documents, model="fake")
    results = answer["results"]
    scores = [item["relevance_score"] for item in results]
    assert scores == sorted(scores, reverse=True)
    assert {item["index"]: item["document"]["text"] for item in results} == {
        0: "de",
        1: "f",
        2: "gh a",
        3: "de",
    }
    by_pairs = post(client, "/score", text_1="abc", text_2=["de", "f", "gh a", "de"])["data"]
    assert all(
        item["relevance_score"] == pytest.approx(by_pairs[item["index"]]["score"], abs=TOLERANCE)
        for item in results
    )
    top = post(client, path, query="abc", documents=documents, top_n=2, return_documents=False)["results"]
    assert [(item["index"], set(item)) for item in top] == [
        (item["index"], {"index", "relevance_score"}) for item in results[:2]
    ]


def test_queries_and_documents_are_truncated_separately(cross_encoder: tuple[httpx.Client, Path]) -> None:
    client, _ = cross_encoder
    limits = {"max_tokens_per_query": 2, "max_tokens_per_doc": 3}
    cut = post(client, "/score", text_1="abcdef", text_2="ghabcd", **limits)
    assert cut["data"] == post(client, "/score", text_1="ab", text_2="gha")["data"]
    error = refuse(client, "/score", text_1="a", text_2="b", max_tokens_per_doc=CONTEXT)
    assert error["param"] == "max_tokens_per_doc"
    both = post(client, "/score", text_1="a" * 50, text_2="b" * 50, truncate_prompt_tokens=20)
    assert both["data"] == post(client, "/score", text_1="a" * 10, text_2="b" * 10)["data"]
    assert refuse(client, "/rerank", query="a", documents=["b", "c" * 99])["param"] == "documents[1]"


def test_a_classifier_has_no_embeddings(cross_encoder: tuple[httpx.Client, Path]) -> None:
    client, _ = cross_encoder
    assert "classifies" in refuse(client, "/v1/embeddings", 404, input="a")["message"]
    [item] = post(client, "/pooling", input="abc", task="classify")["data"]
    assert len(item["data"]) == 1
    assert "score template" in refuse(client, "/score", text_1="a", text_2="b", instruction="x")["message"]


def test_a_score_needs_a_single_label(tmp_path: Path) -> None:
    with pooling(make_pooler("bert-three", tmp_path)) as server, server.http() as client:
        assert "3 labels" in refuse(client, "/score", 404, text_1="a", text_2="b")["message"]
        assert len(post(client, "/pooling", input="a")["data"][0]["data"]) == 3


def test_a_reranker_gets_its_prompt(tmp_path: Path) -> None:
    """The command line's chat template, or the one Qwen trained it with; an instruction changes it."""
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["a", "b"],
        "is_original_qwen3_reranker": True,
        "max_position_embeddings": 1024,
    }
    directory = make_pooler("qwen3", tmp_path)
    template = "{{ instruction | default('i') }}|{{ messages[0].content }}|{{ messages[1].content }}"

    def score(server: Running, **body: Any) -> tuple[float, int]:
        with server.http() as client:
            answer = post(client, "/score", text_1="abc", text_2="de", **body)
        return answer["data"][0]["score"], answer["usage"]["prompt_tokens"]

    options: dict[str, Any] = {"engine": {"hf_overrides": overrides}}
    with pooling(directory, chat_template=template, **options) as server:
        plain, instructed = score(server), score(server, instruction="xyz")
        with server.http() as client:
            read = post(client, "/pooling", input="i|abc|de")["data"][0]["data"][0]
    assert plain[0] == pytest.approx(read, abs=TOLERANCE)
    assert plain[1] == len("i|abc|de")
    assert instructed[1] == len("xyz|abc|de")
    with pooling(directory, **options) as server:
        assert score(server)[1] - score(server, instruction="")[1] == len(
            "Given a web search query, retrieve relevant passages that answer the query"
        )


# All routes


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [""]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1, -1]}, "input"),
        ({"input": [[5], [320]]}, "input[1]"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "bytes"}, "encoding_format"),
        ({"input": "a", "endianness": "big"}, "encoding_format"),
        ({"input": "a", "normalize": True}, "normalize"),
        ({"input": "a", "padding": "max_length"}, "padding"),
        ({"input": "a", "priority": 1.5}, "priority"),
        ({"input": ["a"] * 5000}, "input"),
        ({"messages": []}, "messages"),
    ],
)
def test_an_invalid_field_is_named(body: dict[str, Any], param: str, embedder: httpx.Client) -> None:
    assert refuse(embedder, "/v1/embeddings", **body)["param"] == param


def test_another_model_is_not_found(embedder: httpx.Client) -> None:
    for path, body in (
        ("/v1/embeddings", {"input": "a"}),
        ("/pooling", {"input": "a"}),
        ("/rerank", {"query": "a", "documents": ["b"]}),
        ("/score", {"text_1": "a", "text_2": "b"}),
        ("/v2/embed", {"texts": ["a"]}),
    ):
        assert refuse(embedder, path, 404, model="gpt", **body)["param"] == "model"


def test_lone_surrogates_are_refused(embedder: httpx.Client) -> None:
    response = embedder.post("/v1/embeddings", content=b'{"input": ["a", "\\ud800"]}')
    assert response.status_code == 400


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling", "/rerank", "/score", "/v2/embed"])
def test_ten_megabytes_are_refused_at_once_or_truncated(path: str, embedder: httpx.Client) -> None:
    text = "a" * 10_000_000
    bodies: dict[str, dict[str, Any]] = {
        "/rerank": {"query": "a", "documents": ["b", text]},
        "/score": {"text_1": text, "text_2": "b"},
        "/v2/embed": {"texts": [text], "truncate": "NONE"},
    }
    body = bodies.get(path, {"input": ["b", text]})
    started = time.perf_counter()
    error = refuse(embedder, path, **body)
    assert error["code"] == "context_length_exceeded"
    assert "10000000 characters" in error["message"]
    cut = {"truncate": "END"} if path == "/v2/embed" else {"truncate_prompt_tokens": -1}
    post(embedder, path, **{**body, **cut})
    assert time.perf_counter() - started < 5  # mostly the test's own JSON


def test_each_kind_of_server_names_the_other_for_its_routes(
    embedder: httpx.Client, fake_server: Running
) -> None:
    for path in GENERATION_PATHS:
        assert "--runner pooling" in refuse(embedder, path, 404)["message"]
    with fake_server.http() as client:
        for path in POOLING_PATHS:
            assert "--runner pooling" in refuse(client, path, 404)["message"]


def test_operational_routes_work_the_same(embedder: httpx.Client) -> None:
    assert embedder.get("/health").status_code == 200
    [card, _] = embedder.get("/v1/models").json()["data"]
    assert (card["id"], card["max_model_len"]) == ("fake", CONTEXT)
    assert embedder.get("/v1/models/fake").json()["id"] == "fake"
    assert post(embedder, "/tokenize", prompt="abc")["count"] == 3
    assert post(embedder, "/detokenize", tokens=[3, 4])["prompt"] == "ab"
    before = embedder.get("/metrics").text
    post(embedder, "/v1/embeddings", input=["abc", "de"])
    assert _prompt_tokens(embedder.get("/metrics").text) == _prompt_tokens(before) + 5
    assert embedder.get("/load").json() == {"server_load": 0}
    assert post(embedder, "/abort_requests", request_ids=["nobody"])["aborted"] == 0


def _prompt_tokens(metrics: str) -> float:
    [line] = [one for one in metrics.splitlines() if one.startswith("vllm:prompt_tokens_total")]
    return float(line.split()[-1])


@pytest.fixture(scope="module")
def fake_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    from tests.engine.server.serving import fake_core, running, write_fake_model

    directory = write_fake_model(tmp_path_factory.mktemp("generates"))
    with running(directory, fake_core(directory)) as server:
        yield server
