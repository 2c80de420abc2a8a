"""A program's texts for a model that pools, checked by the server's bodies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidRequest
from engine.offline.concurrency import all_or_none
from engine.offline.params import PoolingParams, as_json
from engine.offline.prompts import Prompt, of_prompt
from engine.pooling.plan import Task
from engine.server.pooling.bodies import RULES, InputBody, ScoreBody
from engine.server.pooling.scores import check_scores, score_pairs
from engine.server.pooling.service import PoolingService
from engine.server.pooling.vectors import pool_body
from engine.server.protocol.body_reader import check


@dataclass(frozen=True, slots=True)
class Pooled:
    token_ids: list[int]
    values: list[float]


def require_task(service: PoolingService, task: Task, called: str) -> None:
    """Raises InvalidRequest."""
    if service.plan.task is not task:
        raise InvalidRequest(
            f"{called} needs a model with the task {task}, and the task of {service.model.name!r} is "
            f"{service.plan.task}: use encode, or convert={task.value!r}."
        )


async def values_of(
    service: PoolingService,
    prompts: Sequence[Prompt],
    params: Sequence[PoolingParams],
    report: Callable[[Pooled], None],
) -> list[Pooled]:
    """The values of each prompt. Raises InvalidRequest, before any of them is computed, and EngineError."""
    bodies = []
    for index, (prompt, options) in enumerate(zip(prompts, params, strict=True)):
        with of_prompt("prompts", index, len(prompts)):
            bodies.append(check({**options.body_fields(), "input": _input_of(prompt)}, InputBody, RULES))

    async def pool(index: int) -> Pooled:
        with of_prompt("prompts", index, len(prompts)):
            (encoded,), (values,) = await pool_body(service, bodies[index])
        pooled = Pooled(encoded.token_ids, values.tolist())
        report(pooled)
        return pooled

    return await all_or_none([pool(index) for index in range(len(bodies))])


async def scores_of(service: PoolingService, data_1: Any, data_2: Any, params: PoolingParams) -> list[Pooled]:
    """The score of each pair, with the tokens of both texts. Raises InvalidRequest and EngineError."""
    check_scores(service, "score", alternative="encode")
    raw = {**params.body_fields(), "text_1": as_json(data_1), "text_2": as_json(data_2)}
    body = check(raw, ScoreBody, RULES)
    scored = await score_pairs(service, body, body.text_1, body.text_2, param="text_2")
    tokens, count = [encoded.token_ids for encoded in scored.inputs], len(scored.scores)
    if len(tokens) > count:  # the model read each text alone
        firsts, seconds = tokens[:-count], tokens[-count:]
        firsts = firsts * count if len(firsts) == 1 else firsts
        tokens = [[*first, *second] for first, second in zip(firsts, seconds, strict=True)]
    return [Pooled(each, [score]) for each, score in zip(tokens, scored.scores, strict=True)]


def _input_of(prompt: Prompt) -> Any:
    """Raises InvalidRequest."""
    if not isinstance(prompt, dict):
        return as_json(prompt)
    known = [name for name in ("prompt_token_ids", "prompt") if prompt.get(name) is not None]
    if unknown := sorted(prompt.keys() - {"prompt_token_ids", "prompt"}):
        raise InvalidRequest(f"{unknown[0]!r} is not supported in a prompt.", param=unknown[0])
    if not known:
        raise InvalidRequest("A prompt needs prompt or prompt_token_ids.", param="prompt")
    return as_json(prompt[known[0]])
