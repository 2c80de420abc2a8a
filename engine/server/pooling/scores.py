"""POST /score and /rerank, under all their names.

A classifier with one label reads both texts at once (cross-encoder); an embedding model reads each by itself
and is asked how alike their vectors are (bi-encoder).
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
from engine.server.http.errors import UnknownRoute
from engine.server.http.large_work import LARGE_BYTES, GilThrottle
from engine.server.http.request_ids import choose_request_id
from engine.server.pooling.bodies import RULES, SCORE_NAMES, PairOptions, RerankBody, ScoreBody
from engine.server.pooling.encode import Encoded, Text, cut_text
from engine.server.pooling.output import Answer, json_response, usage_of
from engine.server.pooling.score_template import score_template
from engine.server.pooling.service import PoolingService, check_chars
from engine.server.protocol.body_reader import check, read_json_object

_SLACK_CHARS = 256  # at a text's end, tokens may be others than in its middle


@dataclass(frozen=True, slots=True)
class Scored:
    scores: list[float]  # one per pair, in order
    inputs: list[Encoded]  # what the model read


async def create_score(request: Request) -> Answer:
    service = _scoring_service(request)
    body = check(_with_our_names(await read_json_object(request)), ScoreBody, RULES)
    return Answer(partial(_answer_score, service, body))


async def create_rerank(request: Request) -> Answer:
    service = _scoring_service(request)
    body = check(await read_json_object(request), RerankBody, RULES)
    return Answer(partial(_answer_rerank, service, body))


async def _answer_score(service: PoolingService, body: ScoreBody) -> Response:
    scored = await _score(service, body, body.text_1, body.text_2, param="text_2")
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
    scored = await _score(service, body, [body.query], body.documents, param="documents")
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


async def _score(
    service: PoolingService, body: PairOptions, left: Sequence[str], right: Sequence[str], *, param: str
) -> Scored:
    """`left` is one text, or as many as `right`."""
    service.model.check_name(body.model)
    for name in ("max_tokens_per_query", "max_tokens_per_doc"):
        if getattr(body, name) >= service.plan.max_model_len:
            raise InvalidRequest(
                f"{name} {getattr(body, name)} is not below the model's {service.plan.max_model_len} tokens.",
                param=name,
            )
    left = await _cut(service, left, body.max_tokens_per_query)
    right = await _cut(service, right, body.max_tokens_per_doc)
    if service.plan.classifier is None:
        return await _compare(service, body, left, right, param)
    return await _read_together(service, body, left, right, param)


async def _cut(service: PoolingService, texts: Sequence[str], max_tokens: int) -> Sequence[str]:
    """The beginnings of texts, of at most so many tokens; 0 = all of them."""
    if not max_tokens:
        return texts
    # No tokens are needed of what is far behind the last one that stays.
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


async def _read_together(
    service: PoolingService, body: PairOptions, left: Sequence[str], right: Sequence[str], param: str
) -> Scored:
    """By a classifier: one input per pair."""
    queries = list(left) * len(right) if len(left) == 1 else left
    check_chars(sum(map(len, queries)) + sum(map(len, right)), param)  # before a query is copied for each
    template = score_template(service.plan, service.config)
    variables = body.template_variables
    if variables and template is None:
        name = "instruction" if body.instruction is not None else "chat_template_kwargs"
        raise InvalidRequest(f"{name}: this model has no score template to hand it to.", param=name)
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
    return Scored([value[0] for value in values], inputs)


async def _compare(
    service: PoolingService, body: PairOptions, left: Sequence[str], right: Sequence[str], param: str
) -> Scored:
    """By an embedding model: one input per text, however many pairs it is in."""
    if body.template_variables:
        name = "instruction" if body.instruction is not None else "chat_template_kwargs"
        raise InvalidRequest(f"{name} is for models that read both texts at once.", param=name)
    inputs = await service.encode_all([*left, *right], param=param, cut=service.cut_of(body))
    values = await _pool(service, body, inputs, param)
    firsts, seconds = values[: len(left)], values[len(left) :]
    if len(firsts) == 1:
        firsts = firsts * len(seconds)
    return Scored([_cosine(*pair) for pair in zip(firsts, seconds, strict=True)], inputs)


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


def _with_our_names(raw: dict[str, Any]) -> dict[str, Any]:
    """`text_1` and `text_2`, whatever the body calls them."""
    for first, second in SCORE_NAMES:
        if first in raw and second in raw and not {"text_1", "text_2"} & raw.keys():
            rest = {name: value for name, value in raw.items() if name not in (first, second)}
            return {**rest, "text_1": raw[first], "text_2": raw[second]}
    return raw


def _scoring_service(request: Request) -> PoolingService:
    service: PoolingService = request.app.state.service
    classifier = service.plan.classifier
    if classifier is not None and classifier.num_labels != 1:
        raise UnknownRoute(
            f"{request.url.path}: this model has {classifier.num_labels} labels, and a score needs one; "
            "use /pooling."
        )
    return service
