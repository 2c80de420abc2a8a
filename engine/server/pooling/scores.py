"""POST /score and /rerank, under all their paths.

A classifier with one label reads both texts together (cross-encoder); an embedding model reads each text
separately, and the score is the similarity of the vectors (bi-encoder).
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import mul
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine.errors import InvalidRequest
from engine.server.http.client_disconnect import CancellableResponse
from engine.server.http.errors import UnknownRoute
from engine.server.http.large_work import LARGE_BYTES, GilThrottle
from engine.server.http.request_ids import choose_request_id
from engine.server.pooling.bodies import RULES, SCORE_NAMES, PairOptions, RerankBody, ScoreBody
from engine.server.pooling.encode import Encoded, Text, cut_text
from engine.server.pooling.output import json_response, usage_of
from engine.server.pooling.score_template import score_template
from engine.server.pooling.service import PoolingService, check_chars
from engine.server.protocol.body_reader import check, read_json_object

_SLACK_CHARS = 256  # the end of a text may be tokenized differently


@dataclass(frozen=True, slots=True)
class PairScores:
    scores: list[float]  # one per pair, in order
    inputs: list[Encoded]  # the tokenized inputs


async def create_score(request: Request) -> CancellableResponse:
    service = _scoring_service(request)
    body = check(_with_standard_names(await read_json_object(request)), ScoreBody, RULES)
    return CancellableResponse(partial(_answer_score, service, body))


async def create_rerank(request: Request) -> CancellableResponse:
    service = _scoring_service(request)
    body = check(await read_json_object(request), RerankBody, RULES)
    return CancellableResponse(partial(_answer_rerank, service, body))


async def _answer_score(service: PoolingService, body: ScoreBody) -> Response:
    scored = await score_pairs(service, body, body.text_1, body.text_2, param="text_2")
    return json_response(
        {
            "id": f"score-{choose_request_id(body.request_id)}",
            "object": "list",
            "created": int(time.time()),
            "model": body.model or service.model.name,
            "data": [
                {"index": index, "object": "score", "score": score}
                for index, score in enumerate(scored.scores)
            ],
            "usage": usage_of(scored.inputs),
        }
    )


async def _answer_rerank(service: PoolingService, body: RerankBody) -> Response:
    scored = await score_pairs(service, body, [body.query], body.documents, param="documents")
    ranked = sorted(enumerate(scored.scores), key=lambda item: -item[1])[: body.top_n or None]
    results = []
    for index, score in ranked:
        document = {"document": {"text": body.documents[index]}} if body.return_documents else {}
        results.append({"index": index, **document, "relevance_score": score})
    num_tokens = usage_of(scored.inputs)["total_tokens"]
    return json_response(
        {
            "id": f"rerank-{choose_request_id(body.request_id)}",
            "model": body.model or service.model.name,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
            "results": results,
        }
    )


async def score_pairs(
    service: PoolingService, body: PairOptions, left: Sequence[str], right: Sequence[str], *, param: str
) -> PairScores:
    """`left` has one text, or as many as `right`."""
    service.model.check_name(body.model)
    for name in ("max_tokens_per_query", "max_tokens_per_doc"):
        if getattr(body, name) >= service.plan.max_model_len:
            raise InvalidRequest(
                f"{name} {getattr(body, name)} must be less than the model's "
                f"{service.plan.max_model_len} tokens.",
                param=name,
            )
    left = await _cut(service, left, body.max_tokens_per_query)
    right = await _cut(service, right, body.max_tokens_per_doc)
    if service.plan.classifier is None:
        return await _score_with_embeddings(service, body, left, right, param)
    return await _score_with_classifier(service, body, left, right, param)


async def _cut(service: PoolingService, texts: Sequence[str], max_tokens: int) -> Sequence[str]:
    """Truncate texts to `max_tokens` tokens; 0 = no limit."""
    if not max_tokens:
        return texts
    # Text far beyond the last kept token need not be tokenized.
    most = max_tokens * service.model.tokenizer.longest_token_bytes + _SLACK_CHARS
    texts = [text[:most] for text in texts]

    def cut() -> list[str]:
        throttle, shortened = GilThrottle(), []
        for text in texts:
            shortened.append(cut_text(service.model.tokenizer, text, max_tokens))
            throttle.pause()
        return shortened

    is_large = sum(map(len, texts)) * 4 >= LARGE_BYTES
    return await service.large_work.run(cut) if is_large else cut()


async def _score_with_classifier(
    service: PoolingService, body: PairOptions, left: Sequence[str], right: Sequence[str], param: str
) -> PairScores:
    """Score with a classifier: one input per pair."""
    queries = list(left) * len(right) if len(left) == 1 else left
    check_chars(sum(map(len, queries)) + sum(map(len, right)), param)  # before queries are copied
    template = score_template(service.plan, service.config)
    variables = body.template_variables
    if variables and template is None:
        name = "instruction" if body.instruction is not None else "chat_template_kwargs"
        raise InvalidRequest(f"{name} needs a score template, and this model has none.", param=name)
    pairs: list[Text] = []
    for query, document in zip(queries, right, strict=True):
        if template is not None:
            messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
            pairs.append(template.render(messages, variables=variables))
        elif service.plan.classifier is not None and service.plan.classifier.joins_texts:
            pairs.append(query + document)
        else:
            pairs.append((query, document))
    inputs = await service.encode_all(pairs, param=param, cut=service.cut_of(body))
    values = await _pool(service, body, inputs, param)
    return PairScores([value[0] for value in values], inputs)


async def _score_with_embeddings(
    service: PoolingService, body: PairOptions, left: Sequence[str], right: Sequence[str], param: str
) -> PairScores:
    """Score with an embedding model: one input per text, however many pairs it is in."""
    if body.template_variables:
        name = "instruction" if body.instruction is not None else "chat_template_kwargs"
        raise InvalidRequest(f"{name} is supported only by models that read both texts together.", param=name)
    inputs = await service.encode_all([*left, *right], param=param, cut=service.cut_of(body))
    values = await _pool(service, body, inputs, param)
    firsts, seconds = values[: len(left)], values[len(left) :]
    if len(firsts) == 1:
        firsts = firsts * len(seconds)
    return PairScores([_cosine(*pair) for pair in zip(firsts, seconds, strict=True)], inputs)


async def _pool(
    service: PoolingService, body: PairOptions, inputs: Sequence[Encoded], param: str
) -> list[array[float]]:
    return await service.pool(
        inputs,
        param=param,
        use_activation=service.use_activation(body),
        priority=body.priority,
        request_id=body.request_id,
    )


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    length = math.sqrt(sum(map(mul, a, a)) * sum(map(mul, b, b)))
    return sum(map(mul, a, b)) / length if length else 0.0


def _with_standard_names(raw: dict[str, Any]) -> dict[str, Any]:
    """Rename the body's texts to `text_1` and `text_2`."""
    for first, second in SCORE_NAMES:
        if first in raw and second in raw and not {"text_1", "text_2"} & raw.keys():
            rest = {name: value for name, value in raw.items() if name not in (first, second)}
            return {**rest, "text_1": raw[first], "text_2": raw[second]}
    return raw


def _scoring_service(request: Request) -> PoolingService:
    service: PoolingService = request.app.state.service
    check_scores(service, request.url.path, alternative="/pooling")
    return service


def check_scores(service: PoolingService, called: str, *, alternative: str) -> None:
    """Raise UnknownRoute if the model gives no single score; `called` is what the error names."""
    classifier = service.plan.classifier
    if classifier is not None and classifier.num_labels != 1:
        raise UnknownRoute(
            f"{called} needs a model with one label, but this one has {classifier.num_labels} "
            f"labels: use {alternative}."
        )
