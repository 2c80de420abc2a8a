"""`LLM`: a model in a program, as vLLM and nano-vllm have it."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar

from engine.core.own_process import only_here
from engine.core.sleep import ALL_PARTS, Part, SleepMode
from engine.errors import EngineAsleep, InvalidRequest
from engine.offline.outputs import (
    ClassificationOutput,
    EmbeddingOutput,
    OutputMaker,
    PoolingOutput,
    PoolingRequestOutput,
    RequestOutput,
    ScoringOutput,
)
from engine.offline.params import LoRARequest, PoolingParams, SamplingParams, per_prompt
from engine.offline.pooled import Pooled, require_task, scores_of, values_of
from engine.offline.progress import UseTqdm, progress
from engine.offline.prompts import (
    Prepare,
    Prompt,
    ensure_adapter,
    for_conversation,
    for_prompt,
    prepare_all,
    run_all,
    split_prompts,
)
from engine.offline.start import host, read_arguments
from engine.pooling.plan import Task
from engine.server.generation.service import GenerationService
from engine.server.pooling.service import PoolingService

T = TypeVar("T")


class LLM:
    """One loaded model. A context manager: leaving it ends running calls and frees the memory.

    Any number of threads may call it at once; their requests share the engine's steps. A call waits for its
    result, also where an event loop runs. Ctrl-C ends a call and leaves the model loaded.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, **flags: Any) -> None:
        """`flags` are those of `python -m engine` with underscores, except for those of HTTP.

        Without `model`, the environment variable NANOVLLM_MODEL_PATH names it. Raises EngineError.
        """
        self._hosted = host(read_arguments(model, flags))
        self._close = weakref.finalize(self, only_here(self._hosted.close))
        self._ids = itertools.count()
        self._maker = OutputMaker(self._hosted.service.model.tokenizer)

    def __repr__(self) -> str:
        return f"<LLM {self._hosted!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """End running calls, free the memory and end the threads. Later calls raise EngineDead."""
        self._close()

    # Models that generate

    def get_default_sampling_params(self) -> SamplingParams:
        """The checkpoint's own (generation_config.json); a new object for each call."""
        names = {"max_new_tokens": "max_tokens"}
        defaults = self._hosted.service.model.defaults
        return SamplingParams(**{names.get(name, name): value for name, value in defaults.items()})

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: UseTqdm = True,
        *,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Continue each prompt: text, token ids, or a mapping with `prompt` or `prompt_token_ids`.

        All prompts are checked before the first runs. Raises InvalidRequest and EngineError.
        """
        each = split_prompts(prompts)
        all_params = self._params(sampling_params, len(each))
        priorities = per_prompt("priority", 0 if priority is None else priority, int, len(each))
        models = self._models(lora_request, len(each))
        makes = [partial(for_prompt, *one) for one in zip(each, all_params, models, priorities, strict=True)]
        return self._run("generate", makes, use_tqdm, name="prompts")

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: UseTqdm = True,
        *,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of several.

        The texts are as they were generated, with reasoning and calls. Raises what `generate` raises.
        """
        each = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        all_params = self._params(sampling_params, len(each))
        options = {
            "chat_template": chat_template,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "tools": tools,
            "chat_template_kwargs": chat_template_kwargs,
        }
        models = self._models(lora_request, len(each))
        makes = [
            partial(for_conversation, *one, options) for one in zip(each, all_params, models, strict=True)
        ]
        return self._run("chat", makes, use_tqdm, name="messages")

    # Models that pool

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: UseTqdm = True,
    ) -> list[PoolingRequestOutput[EmbeddingOutput]]:
        """A vector for each prompt. Raises InvalidRequest and EngineError."""
        require_task(self._pooling_service("embed"), Task.EMBED, "embed")
        return self._pool(prompts, pooling_params, use_tqdm, EmbeddingOutput)

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: UseTqdm = True,
    ) -> list[PoolingRequestOutput[ClassificationOutput]]:
        """The probability of each label, for each prompt. Raises InvalidRequest and EngineError."""
        require_task(self._pooling_service("classify"), Task.CLASSIFY, "classify")
        return self._pool(prompts, pooling_params, use_tqdm, ClassificationOutput)

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: UseTqdm = True,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """The model's values, whatever its task. Raises InvalidRequest and EngineError."""
        self._pooling_service("encode")
        return self._pool(prompts, pooling_params, use_tqdm, PoolingOutput)

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        *,
        pooling_params: PoolingParams | None = None,
    ) -> list[PoolingRequestOutput[ScoringOutput]]:
        """How well texts match: one to one, one to many, or pair by pair."""
        service = self._pooling_service("score")
        params = pooling_params or PoolingParams()
        scored = self._call(lambda report: scores_of(service, data_1, data_2, params))
        return [
            PoolingRequestOutput(str(next(self._ids)), ScoringOutput(*each.values), each.token_ids)
            for each in scored
        ]

    # The engine

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Free the KV cache's memory, at level 2 the weights' too; running calls are aborted or awaited."""
        if mode not in tuple(SleepMode):
            raise InvalidRequest(f"mode must be {' or '.join(SleepMode)}, not {mode!r}.", param="mode")
        self._call(lambda report: self._sleeper.sleep(level, SleepMode(mode)))

    def wake_up(self, tags: Iterable[str] | None = None) -> None:
        """Allocate the memory again, or that of the parts in `tags`: weights, kv_cache."""
        parts = set(ALL_PARTS if tags is None else tags)
        if unknown := sorted(parts - ALL_PARTS):
            raise InvalidRequest(f"tags may be {', '.join(Part)}, not {', '.join(unknown)}.", param="tags")
        self._call(lambda report: self._sleeper.wake_up({Part(part) for part in parts}))

    @property
    def is_sleeping(self) -> bool:
        return bool(self._sleeper.is_sleeping)

    def reset_prefix_cache(self) -> None:
        """Forget cached keys and values of prompts."""
        engine = self._generation_service("reset_prefix_cache").engine
        self._call(lambda report: engine.reset_prefix_cache())

    # Within

    @property
    def _sleeper(self) -> Any:
        return self._hosted.service.engine.sleep_controller

    def _generation_service(self, called: str) -> GenerationService:
        service = self._hosted.service
        if not isinstance(service, GenerationService):
            raise InvalidRequest(f"{called} needs a model that generates; {service.model.name!r} pools.")
        return service

    def _pooling_service(self, called: str) -> PoolingService:
        service = self._hosted.service
        if not isinstance(service, PoolingService):
            raise InvalidRequest(
                f"{called} needs a model that pools; {service.model.name!r} generates (runner='pooling' may "
                "change that)."
            )
        return service

    def _params(self, given: Any, count: int) -> Sequence[SamplingParams]:
        params = self.get_default_sampling_params() if given is None else given
        return per_prompt("sampling_params", params, SamplingParams, count)

    def _models(self, given: Any, count: int) -> Sequence[str | None]:
        """The name of each prompt's adapter, which is loaded if it isn't yet."""
        if given is None:
            return [None] * count
        requests = per_prompt("lora_request", given, LoRARequest, count, none_is_one=True)
        service = self._generation_service("lora_request")
        for one in dict.fromkeys(filter(None, requests)):
            self._call(partial(ensure_adapter, service, one))
        return [one and one.lora_name for one in requests]

    def _run(
        self, called: str, makes: Sequence[Callable[[], Prepare]], use_tqdm: UseTqdm, *, name: str
    ) -> list[RequestOutput]:
        """`makes` check one prompt each; `name` is what errors call all of them."""
        service = self._generation_service(called)
        prepared = self._call(lambda report: prepare_all(service, makes, self._ids, name))
        most = self._hosted.most_at_once
        with progress(use_tqdm, len(prepared), "Processed prompts") as advance:
            return self._call(
                lambda report: run_all(prepared, self._maker, most, report),
                lambda output: advance(*output.num_tokens),
            )

    def _pool(
        self, prompts: Any, pooling_params: Any, use_tqdm: UseTqdm, make: Callable[[list[float]], T]
    ) -> list[PoolingRequestOutput[T]]:
        service = self._pooling_service("encode")
        each = split_prompts(prompts)
        all_params = per_prompt("pooling_params", pooling_params or PoolingParams(), PoolingParams, len(each))

        async def work(report: Callable[[Pooled], None]) -> list[Pooled]:
            return await values_of(service, each, all_params, report)

        with progress(use_tqdm, len(each), "Processed prompts") as advance:
            pooled = self._call(work, lambda one: advance(len(one.token_ids), 0))
        return [
            PoolingRequestOutput(str(next(self._ids)), make(each.values), each.token_ids) for each in pooled
        ]

    def _call(
        self,
        work: Callable[[Callable[[Any], None]], Coroutine[Any, Any, T]],
        receive: Callable[[Any], None] = lambda item: None,
    ) -> T:
        try:
            return self._hosted.loop.call(work, receive)
        except EngineAsleep as error:
            raise EngineAsleep(error.message.replace("POST /wake_up", "call wake_up()")) from error
