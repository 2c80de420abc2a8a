"""`LLM` gives what the server gives, to programs of every kind, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import engine
from engine import LLM, SamplingParams, StructuredOutputsParams
from engine.core.engine_core import EngineCore
from engine.errors import EngineAsleep, EngineDead, EngineError, InvalidRequest, PromptTooLong
from tests.berth_process import ROOT
from tests.engine.offline.conftest import DEMO
from tests.engine.server.serving import Running, wait_until

FOX = "Tell me a story about a fox."
QUIET: dict[str, Any] = {"use_tqdm": False}


def ask(llm: LLM, prompts: Any, **params: Any) -> list[Any]:
    outputs: list[Any] = llm.generate(prompts, SamplingParams(**params), use_tqdm=False)
    return outputs


# The same as over HTTP


@pytest.mark.parametrize("params", [{"temperature": 0}, {"seed": 7}, {"seed": 7, "n": 3, "top_k": 20}])
def test_completions_equal_the_servers(llm: LLM, demo_server: Running, params: dict[str, Any]) -> None:
    given = SamplingParams(max_tokens=24, top_p=0.9, **params)
    with demo_server.http() as client:
        body = {"prompt": FOX, **given.body_fields()}
        wanted = client.post("/v1/completions", json=body).json()["choices"]
    (output,) = llm.generate(FOX, given, **QUIET)
    assert [each.text for each in output.outputs] == [choice["text"] for choice in wanted]
    assert [each.finish_reason for each in output.outputs] == [choice["finish_reason"] for choice in wanted]


def test_chats_equal_the_servers(llm: LLM, demo_server: Running) -> None:
    messages = [{"role": "user", "content": "What is Berth?"}]
    params = SamplingParams(max_tokens=32, temperature=0.7, seed=3)
    with demo_server.http() as client:
        chat = {"messages": messages, "return_prompt_text": True, "return_token_ids": True}
        wanted = client.post("/v1/chat/completions", json={**chat, **params.body_fields()}).json()
    (output,) = llm.chat(messages, params, **QUIET)
    assert output.outputs[0].token_ids == wanted["choices"][0]["token_ids"]
    assert output.prompt == wanted["prompt_text"]
    assert output.prompt_token_ids == wanted["prompt_token_ids"]


def test_a_chats_text_has_calls_as_they_were_generated(llm: LLM) -> None:
    function = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}
    messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
    params = SamplingParams(temperature=0, max_tokens=60)
    tools = [{"type": "function", "function": function}]
    (output,) = llm.chat(messages, params, tools=tools, **QUIET)
    assert "<tool_call>" in output.outputs[0].text


def test_several_conversations_are_answered_in_order(llm: LLM) -> None:
    chats = [[{"role": "user", "content": text}] for text in ("What is Berth?", FOX)]
    params = SamplingParams(temperature=0, max_tokens=8)
    both = llm.chat(chats, params, **QUIET)
    alone = [llm.chat(chat, params, **QUIET)[0] for chat in chats]
    assert [each["text"] for each in both] == [each["text"] for each in alone]


# Prompts and parameters


def test_prompts_are_texts_token_ids_or_mappings(llm: LLM) -> None:
    (of_text,) = ask(llm, FOX, temperature=0)
    token_ids = of_text.prompt_token_ids
    forms = [token_ids, [token_ids], {"prompt": FOX}, [{"prompt_token_ids": token_ids}], (FOX,)]
    for form in forms:
        (output,) = ask(llm, form, temperature=0)
        assert output.outputs[0].token_ids == of_text.outputs[0].token_ids
    assert of_text.prompt == FOX
    assert ask(llm, token_ids)[0].prompt is None
    assert ask(llm, []) == []


def test_each_prompt_may_have_parameters_of_its_own(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=1), SamplingParams(max_tokens=3, ignore_eos=True)]
    outputs = llm.generate([FOX, FOX], params, use_tqdm=False)
    assert [len(output["token_ids"]) for output in outputs] == [1, 3]


def test_without_parameters_the_checkpoints_apply(llm: LLM) -> None:
    with LLM(DEMO, override_generation_config={"temperature": 0, "max_new_tokens": 5}, num_threads=1) as own:
        defaults = own.get_default_sampling_params()
        assert (defaults.temperature, defaults.max_tokens) == (0, 5)
        defaults.max_tokens = 2
        assert own.get_default_sampling_params().max_tokens == 5
        (output,) = own.chat([{"role": "user", "content": FOX}], **QUIET)
        given = SamplingParams(temperature=0, max_tokens=5)
        (wanted,) = own.chat([{"role": "user", "content": FOX}], given, **QUIET)
    assert len(output["token_ids"]) == 5
    assert output["token_ids"] == wanted["token_ids"]


def test_logprobs_are_those_of_each_position(llm: LLM) -> None:
    (output,) = ask(llm, FOX, temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=0)
    (first,) = output.outputs
    assert first.logprobs is not None
    for token_id, position in zip(first.token_ids, first.logprobs, strict=True):
        assert len(position) == 2
        assert position[token_id].rank == 1
        assert position[token_id].logprob == max(each.logprob for each in position.values())
    chosen = [first.logprobs[index][token_id] for index, token_id in enumerate(first.token_ids)]
    assert first.cumulative_logprob == pytest.approx(sum(each.logprob for each in chosen))
    assert "".join(each.decoded_token for each in chosen).removesuffix("<|im_end|>") == first.text
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


def test_stop_strings_end_the_text(llm: LLM) -> None:
    text = ask(llm, FOX, temperature=0, max_tokens=40, ignore_eos=True)[0]["text"]
    stop = text.split()[3]
    (output,) = ask(llm, FOX, temperature=0, max_tokens=40, ignore_eos=True, stop=stop)
    assert output["text"] == text[: text.index(stop)]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", stop)


def test_output_follows_a_form(llm: LLM) -> None:
    structured = StructuredOutputsParams(choice=["yes", "no"])
    assert ask(llm, "Is it?", structured_outputs=structured)[0]["text"] in ("yes", "no")
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    schema["additionalProperties"] = False
    text = ask(llm, "Is it?", structured_outputs={"json": schema}, max_tokens=200)[0]["text"]
    assert json.loads(text) == {"a": 1}


def test_text_may_be_left_out(llm: LLM) -> None:
    (output,) = ask(llm, FOX, detokenize=False, ignore_eos=True)
    assert output["text"] == ""
    assert len(output["token_ids"]) == 16


# Errors are the server's, and nothing runs before all is checked


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1}, "temperature: Input should be greater than or equal to 0, not -1"),
        ({"n": 0}, "n: Input should be greater than or equal to 1"),
        ({"max_tokens": "many"}, "max_tokens: Input should be a valid integer"),
        ({"stop": [""]}, "stop: stop strings must not be empty"),
        ({"structured_outputs": {}}, "structured_outputs: give exactly one of"),
        ({"logit_bias": {5: 101}}, "biases must be between -100 and 100"),
        ({"top_p": float("nan")}, "top_p"),
    ],
)
def test_parameters_are_checked_when_they_are_made(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**fields)
    assert message in caught.value.message


def test_a_parameter_that_was_changed_is_checked_again(llm: LLM) -> None:
    params = SamplingParams()
    params.top_p = 2
    with pytest.raises(InvalidRequest, match="top_p"):
        llm.generate(FOX, params)


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ([FOX, ""], {}, r"prompts\[1\]: The prompt is empty"),
        ([FOX, 5], {}, r"prompts\[1\]: prompt: must be a string"),
        ("\ud800", {}, "not valid Unicode"),
        ([10**6], {}, "outside the vocabulary"),
        ({"prompt": FOX, "multi_modal_data": {}}, {}, "'multi_modal_data' is not supported"),
        ({}, {}, "needs prompt or prompt_token_ids"),
        (None, {}, "prompts must be a text, token ids or several of them, not None"),
        (FOX, {"logprobs": 21}, "logprobs 21 exceeds"),
        (FOX, {"thinking_token_budget": 5}, "'thinking_token_budget' is not supported"),
    ],
)
def test_a_wrong_prompt_is_refused_before_any_runs(
    llm: LLM, prompts: Any, params: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        llm.generate(prompts, SamplingParams(**params))
    assert "Processed" not in capsys.readouterr().err


def test_a_prompt_that_is_too_long_is_refused(llm: LLM) -> None:
    with pytest.raises(PromptTooLong, match="maximum context length"):
        ask(llm, [5] * 100_000)


def test_counts_must_match(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="sampling_params has 1 entries for 2 prompts"):
        llm.generate([FOX, FOX], [SamplingParams()])
    with pytest.raises(InvalidRequest, match="priority must be int, not str"):
        llm.generate(FOX, priority=["a"])  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="sampling_params must be SamplingParams, not dict"):
        llm.generate(FOX, {"n": 1})  # type: ignore[arg-type]


def test_a_model_that_generates_does_not_pool(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="embed needs a model that pools"):
        llm.embed(FOX)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_num_seqs": "x"}, "--max-num-seqs: 'x' is not"),
        ({"max_num_seq": 4}, "did you mean --max-num-seqs"),
        ({"quantization": "awq"}, "--quantization awq"),
        ({"port": 8000}, "port is a flag of the server"),
        ({"api_key": "x"}, "api_key is a flag of the server"),
        ({"model_tag": "x"}, "--model-tag"),
    ],
)
def test_a_wrong_argument_is_named(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError) as caught:
        LLM(DEMO, **flags)
    assert message in caught.value.message


def test_a_missing_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    with pytest.raises(EngineError, match="gone"):
        LLM(tmp_path / "gone")
    monkeypatch.delenv("NANOVLLM_MODEL_PATH", raising=False)
    with pytest.raises(EngineError, match="No model is given"):
        LLM()
    assert threading.active_count() == before


# In programs of every kind


def test_importing_the_package_loads_little() -> None:
    code = "import engine, sys; print({'torch', 'pydantic', 'engine.server'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
    assert {"LLM", "SamplingParams", "run_server"} <= set(dir(engine))
    with pytest.raises(AttributeError):
        _ = engine.LM  # type: ignore[attr-defined]


def test_a_running_event_loop_does_not_matter(llm: LLM) -> None:
    async def in_a_notebook() -> str:
        return str(ask(llm, FOX, temperature=0)[0]["text"])

    assert asyncio.run(in_a_notebook()) == ask(llm, FOX, temperature=0)[0]["text"]


def test_threads_share_the_model(llm: LLM) -> None:
    prompts = [f"{FOX} {number}" for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda prompt: ask(llm, prompt, seed=1)[0]["text"], prompts))
    assert together == [output["text"] for output in ask(llm, prompts, seed=1)]


def test_two_models_in_one_process(llm: LLM) -> None:
    with LLM(DEMO, dtype="float32", num_threads=1, max_model_len=64) as other:
        assert ask(other, FOX, temperature=0)[0]["text"] == ask(llm, FOX, temperature=0)[0]["text"]
        with pytest.raises(PromptTooLong):
            ask(other, [5] * 65)
    assert ask(llm, FOX)


def test_many_prompts_at_once_are_quicker_than_one_by_one(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 prompts share the engine's steps; how many steps there are decides how long it takes."""
    steps, step = itertools.count(), EngineCore.step
    monkeypatch.setattr(EngineCore, "step", lambda core: (next(steps), step(core))[1])
    prompts = [f"{FOX} {number}" for number in range(64)]
    outputs = ask(llm, prompts, max_tokens=8, ignore_eos=True)
    num_together = next(steps)
    alone = [ask(llm, prompt, max_tokens=8, ignore_eos=True)[0] for prompt in prompts]
    assert next(steps) - num_together >= 64 * 8
    assert num_together < 64 * 8 / 4
    assert [output.prompt for output in outputs] == prompts
    assert all(len(output["token_ids"]) == 8 for output in (*outputs, *alone))


class _Bar:
    """A progress bar that notes what it is told."""

    def __init__(self, **options: Any) -> None:
        self.options, self.count, self.is_closed, self.threads = options, 0, False, set[int]()

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        assert "tok/s" in text

    def update(self, count: int) -> None:
        self.count += count
        self.threads.add(threading.get_ident())

    def close(self) -> None:
        self.is_closed = True


def test_progress_is_shown_in_the_callers_thread(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    bars: list[_Bar] = []

    def make(**options: Any) -> _Bar:
        bars.append(_Bar(**options))
        return bars[-1]

    llm.generate([FOX, FOX, FOX], SamplingParams(max_tokens=2), use_tqdm=make)
    (bar,) = bars
    assert (bar.options["total"], bar.count, bar.is_closed) == (3, 3, True)
    assert bar.threads == {threading.get_ident()}
    llm.generate(FOX, SamplingParams(max_tokens=2))
    assert "1/1" in capsys.readouterr().err


# Ends


def test_sleep_and_wake_up(llm: LLM) -> None:
    text = ask(llm, FOX, temperature=0)[0]["text"]
    for level in (1, 2):
        llm.sleep(level)
        assert llm.is_sleeping
        with pytest.raises(EngineAsleep, match=r"call wake_up\(\) first"):
            ask(llm, FOX)
        llm.wake_up(tags=["weights"])
        assert llm.is_sleeping
        llm.wake_up()
        assert ask(llm, FOX, temperature=0)[0]["text"] == text
    with pytest.raises(InvalidRequest, match="level is 3"):
        llm.sleep(3)
    with pytest.raises(InvalidRequest, match="mode must be abort or wait"):
        llm.sleep(mode="x")
    with pytest.raises(InvalidRequest, match="tags may be weights, kv_cache, not x"):
        llm.wake_up(["x"])


@pytest.fixture
def own() -> Iterator[LLM]:
    with LLM(DEMO, dtype="float32", num_threads=1, max_num_seqs=2) as llm:
        yield llm


def test_shutdown_frees_all_and_may_be_repeated() -> None:
    before = threading.active_count()
    llm = LLM(DEMO, num_threads=1)
    core = weakref.ref(llm._hosted.service.engine._core)
    assert core() is not None
    llm.shutdown()
    llm.shutdown()
    gc.collect()
    assert core() is None
    assert threading.active_count() == before
    assert "shut down" in repr(llm)
    with pytest.raises(EngineDead):
        ask(llm, FOX)


def test_an_llm_that_is_dropped_is_shut_down() -> None:
    before = threading.active_count()
    LLM(DEMO, num_threads=1)
    gc.collect()
    assert threading.active_count() == before


def in_background(call: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_a_shutdown_ends_calls_of_other_threads(own: LLM) -> None:
    engine_thread = own._hosted.service.engine
    call, errors = in_background(lambda: ask(own, [FOX] * 20, max_tokens=None, ignore_eos=True))
    wait_until(lambda: engine_thread.num_unfinished > 0)
    own.shutdown()
    call.join(60)
    assert not call.is_alive()
    assert isinstance(errors[0], EngineError)


def test_ctrl_c_ends_the_call_and_leaves_the_model(tmp_path: Path) -> None:
    """Each of two prompts runs for thousands of tokens; the signal comes as soon as one has a token."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, threading, time, sys\n"
        "from engine import LLM, SamplingParams\n"
        "llm = LLM(sys.argv[1], num_threads=1)\n"
        "engine = llm._hosted.service.engine\n"
        "def interrupt():\n"
        "    while engine.stats().generation_tokens < 2:\n"
        "        time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=interrupt, daemon=True).start()\n"
        "try:\n"
        "    llm.generate(['a', 'b'], SamplingParams(max_tokens=None, ignore_eos=True))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
        "    while engine.num_unfinished:\n"  # released with the step that runs
        "        time.sleep(0.01)\n"
        "print(len(llm.generate('c', SamplingParams(max_tokens=3, ignore_eos=True))[0]['token_ids']))\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, str(program), str(DEMO)]
    ran = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert ran.stdout == "interrupted\n3\n", ran.stderr
    assert ran.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in ran.stderr
    assert "Fatal" not in ran.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_can_not_use_the_model_and_leaves_the_parent_its_own(tmp_path: Path) -> None:
    """It ends as any program does, with its copies of what cleans up: threads, grammar processes, ranks."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from engine import LLM, SamplingParams\n"
        "from engine.errors import EngineDead\n"
        "llm = LLM(sys.argv[1], num_threads=1, tensor_parallel_size=2)\n"
        "say = lambda: llm.generate('c', SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)\n"
        "say()\n"
        "if (child := os.fork()) == 0:\n"
        "    try:\n"
        "        say()\n"
        "    except EngineDead as error:\n"
        "        print('is a fork' in str(error), flush=True)\n"
        "    llm.shutdown()\n"
        "    del llm\n"
        "    sys.exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "print(len(say()[0]['token_ids']))\n"
        "llm.shutdown()\n"
    )
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, str(program), str(DEMO)]
    ran = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout == "True\n7\n3\n", ran.stderr
