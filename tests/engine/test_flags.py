"""The command line: our flags, vLLM's, and unknown ones."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.launch import vllm_flags
from engine.launch.flag_parser import FOREIGN, build_parser
from engine.launch.flag_rules import RULES
from engine.launch.flags import Flags, parse_flags, to_argv


def parse(*words: str, **environ: str) -> Flags:
    return parse_flags(["--model", "some/model", *words], environ)


def test_defaults() -> None:
    flags = parse()
    assert flags.engine.model == Path("some/model")
    assert flags.server.served_model_names == ("some/model",)
    assert (flags.server.host, flags.server.port) == ("127.0.0.1", 8000)
    assert flags.server.api_keys == ()
    assert flags.warnings == ()


def test_every_engine_flag_reaches_the_config() -> None:
    words = shlex.split(
        "--dtype half --device cpu --max-model-len 4K --max-num-seqs 8 --max-num-batched-tokens 512 "
        "--block-size 32 --num-gpu-blocks-override 100 --kv-cache-memory-bytes 1.5G "
        "--gpu-memory-utilization 0.5 --no-enable-prefix-caching --num-threads 2"
    )
    engine = parse(*words).engine
    assert (engine.dtype, engine.device, engine.max_model_len) == ("float16", "cpu", 4096)
    assert (engine.max_num_seqs, engine.max_num_batched_tokens, engine.block_size) == (8, 512, 32)
    assert (engine.num_gpu_blocks_override, engine.kv_cache_memory_bytes) == (100, 3 * 2**29)
    assert (engine.gpu_memory_utilization, engine.enable_prefix_caching, engine.num_threads) == (
        0.5,
        False,
        2,
    )


def test_pooling_flags_reach_the_config() -> None:
    overrides, pooler = '{"architectures": ["Qwen3ForSequenceClassification"]}', '{"pooling_type": "MEAN"}'
    engine = parse(
        *shlex.split("--runner pooling --convert classify"),
        *("--hf-overrides", overrides, "--pooler-config", pooler),
    ).engine
    assert (engine.runner, engine.convert) == ("pooling", "classify")
    assert engine.hf_overrides == {"architectures": ["Qwen3ForSequenceClassification"]}
    assert engine.pooler_config == {"pooling_type": "MEAN"}
    assert (parse().engine.runner, parse().engine.convert) == ("auto", "auto")


def test_every_server_flag_reaches_the_config(tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("from a file")
    words = shlex.split(
        f"--host 0.0.0.0 --port 1234 --served-model-name a b --api-key one two --tokenizer {tmp_path} "
        f"--chat-template {template} --chat-template-content-format openai --generation-config vllm --seed 7 "
        "--max-num-queued-reqs 9 --shutdown-timeout 1.5 --no-disable-uvicorn-access-log "
        "--uvicorn-log-level debug"
    )
    objects = ["--override-generation-config", '{"top_k": 3}', "--default-chat-template-kwargs", '{"x": 1}']
    server = parse(*words, *objects).server
    assert (server.host, server.port, server.served_model_names) == ("0.0.0.0", 1234, ("a", "b"))
    assert (server.api_keys, server.tokenizer) == (("one", "two"), tmp_path)
    assert (server.chat_template, server.chat_template_content_format) == ("from a file", "openai")
    assert (server.generation_config, server.seed, server.max_waiting) == ("vllm", 7, 9)
    assert (server.shutdown_timeout_s, server.access_log, server.log_level) == (1.5, True, "debug")
    assert (server.override_generation_config, server.default_chat_template_kwargs) == (
        {"top_k": 3},
        {"x": 1},
    )


def test_a_chat_template_may_be_given_as_source() -> None:
    assert parse("--chat-template", "{{ messages }}").server.chat_template == "{{ messages }}"


def test_the_api_key_comes_from_the_environment_unless_given() -> None:
    assert parse(VLLM_API_KEY="secret").server.api_keys == ("secret",)
    assert parse("--api-key", "mine", VLLM_API_KEY="secret").server.api_keys == ("mine",)


@pytest.mark.parametrize("words", [["--max_model_len", "64"], ["--max_model_len=64"], ["--max-model-len=64"]])
def test_underscores_and_equals_signs(words: list[str]) -> None:
    assert parse(*words).engine.max_model_len == 64


@pytest.mark.parametrize(("text", "length"), [("auto", None), ("-1", None), ("2k", 2000), ("2K", 2048)])
def test_lengths_with_units(text: str, length: int | None) -> None:
    assert parse("--max-model-len", text).engine.max_model_len == length


def test_the_stream_interval_is_a_whole_number_of_tokens() -> None:
    assert parse().server.stream_interval == 1
    assert parse("--stream-interval", "8").server.stream_interval == 8
    for wrong in ("0", "-1", "1.5", "often"):
        with pytest.raises(ConfigError, match="stream-interval"):
            parse(f"--stream-interval={wrong}")


def test_what_berth_passes_by_default_is_accepted() -> None:
    words = shlex.split("--dtype auto --kv-cache-dtype auto --trust-remote-code -tp 1")
    assert len(parse(*words).warnings) == 1  # trust-remote-code: we run none


def test_an_unused_vllm_flag_gives_one_warning_that_names_it() -> None:
    flags = parse("--enforce-eager", "--watermark", "0.1", "--cudagraph-capture-sizes", "1", "2")
    assert len(flags.warnings) == 3
    names = [warning.split()[0] for warning in sorted(flags.warnings)]
    assert names == ["--cudagraph-capture-sizes", "--enforce-eager", "--watermark"]


def test_every_flag_of_vllm_is_known() -> None:
    """No flag of vLLM's is reported as unknown; only its value may be refused."""
    for name in sorted(vllm_flags.SWITCHES | vllm_flags.VALUES | vllm_flags.LISTS):
        words = [f"--{name}"] if name in vllm_flags.SWITCHES else [f"--{name}", "1"]
        try:
            parse(*words)
        except ConfigError as error:
            assert "Unknown" not in str(error), name
            assert f"--{name}" in str(error)


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_flag_we_can_not_honour_is_refused_with_a_reason(name: str) -> None:
    if name in vllm_flags.SWITCHES:
        wanted = "false" in RULES[name].allowed
        words = [f"--{name}" if wanted else f"--no-{name}"]
        neutral = [f"--no-{name}" if wanted else f"--{name}"]
    else:
        words = [f"--{name}", "something-else"]
        neutral = [f"--{name}", min(RULES[name].allowed)] if RULES[name].allowed else []
    with pytest.raises(ConfigError, match=f"--{name} .*can't be honoured: "):
        parse(*words)
    assert parse(*neutral).warnings == ()


def test_every_rule_is_for_a_vllm_flag() -> None:
    assert set(RULES) <= vllm_flags.SWITCHES | vllm_flags.VALUES | vllm_flags.LISTS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-model-length", "4"], "Unknown argument '--max-model-length'; did you mean --max-model-len"),
        (["--no-such-thing-at-all"], "Unknown argument '--no-such-thing-at-all'"),
        (["stray"], "Unknown argument 'stray'"),
        (["--enable-lora", "true"], "Unknown argument 'true': a switch takes no value"),
        (["--port", "many"], "--port: 'many' is not a port"),
        (["--port", "65536"], "--port: '65536' is not a port"),
        (["--max-num-seqs", "0"], "--max-num-seqs: '0' is not a whole number above 0"),
        (["--max-model-len", "1.3"], "--max-model-len: '1.3' is not a whole number"),
        (["--gpu-memory-utilization", "1.5"], "1.5 must be above 0 and at most 1"),
        (["--gpu-memory-utilization", "x"], "'x' is not a number"),
        (["--shutdown-timeout", "-1"], "-1 is not a number of seconds"),
        (["--dtype", "int8"], "--dtype"),
        (["--override-generation-config", "[]"], "is not a JSON object"),
        (["--override-generation-config", "{"], "is not valid JSON"),
        (
            ["--chat-template", "/no/such/file"],
            "--chat-template /no/such/file: neither a readable file nor Jinja source",
        ),
        (["--host"], "--host: expected one argument"),
    ],
)
def test_an_error_says_what_is_wrong(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*words)
    assert message in str(caught.value)


def test_a_model_is_required() -> None:
    with pytest.raises(ConfigError, match="--model"):
        parse_flags([], {})


def test_every_flag_of_ours_has_a_help_text() -> None:
    ours = [action for action in build_parser()._actions if not action.dest.startswith(FOREIGN)]
    assert len(ours) > 40
    assert [action.option_strings for action in ours if not (action.help or "").strip()] == []


def test_help_shows_our_flags_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "--max-model-len" in shown
    assert "--enforce-eager" not in shown
    assert argparse.SUPPRESS not in shown


@pytest.mark.parametrize(
    ("words", "environ"),
    [
        (["--model", "a/b"], {}),
        (["--model-path", "a/b"], {}),
        (["--model_path=a/b"], {}),
        (["a/b"], {}),
        (["--port", "1", "a/b", "--tp", "1"], {}),
        (["a/b", "--model", "a/b"], {}),
        ([], {"NANOVLLM_MODEL_PATH": "a/b"}),
        (["a/b"], {"NANOVLLM_MODEL_PATH": "other"}),
    ],
)
def test_ways_to_name_the_model(words: list[str], environ: dict[str, str]) -> None:
    flags = parse_flags(words, environ)
    assert flags.engine.model == Path("a/b")
    assert flags.server.served_model_names == ("a/b",)


@pytest.mark.parametrize(
    ("words", "environ", "notes"),
    [
        (["--model-path", "a"], {}, ["--model-path is an alias of --model"]),
        (["--model_path=a"], {}, ["--model-path is an alias of --model"]),
        (["a", "--tp", "1"], {}, ["--tp is an alias of --tensor-parallel-size"]),
        (["a", "--tp=1"], {}, ["--tp is an alias of --tensor-parallel-size"]),
        ([], {"NANOVLLM_MODEL_PATH": "a"}, ["NANOVLLM_MODEL_PATH=a is an alias of --model"]),
        (
            ["a", "--api-key", "x", "--api-key=y"],
            {},
            ["--api-key, given 2 times, is an alias of one --api-key with all keys"],
        ),
        (["a", "-tp", "1", "--api-key", "x", "y"], {"NANOVLLM_MODEL_PATH": "b"}, []),
    ],
)
def test_names_of_other_servers_say_what_they_stand_for(
    words: list[str], environ: dict[str, str], notes: list[str]
) -> None:
    assert list(parse_flags(words, environ).notes) == notes


def test_without_a_model_the_error_says_how_to_name_one() -> None:
    with pytest.raises(ConfigError, match="No model is given"):
        parse_flags(["--port", "1"], {})


@pytest.mark.parametrize("flag", ["--tp", "-tp", "--tensor-parallel-size", "--tensor_parallel_size"])
def test_a_model_is_divided_among_devices(flag: str) -> None:
    flags = parse(flag, "2")
    assert flags.engine.tensor_parallel_size == 2
    assert flags.warnings == ()
    assert parse().engine.tensor_parallel_size == 1
    with pytest.raises(ConfigError, match="not a whole number above 0"):
        parse(flag, "0")


def test_devices_share_a_model_in_no_other_way() -> None:
    assert parse("-pp", "1").warnings == ()
    with pytest.raises(ConfigError, match="--pipeline-parallel-size 2 can't be honoured"):
        parse("-pp", "2")


def test_several_keys_add_up_and_override_the_environment() -> None:
    words = ["--api-key", "a", "b", "--api-key", "c"]
    assert parse(*words, VLLM_API_KEY="e").server.api_keys == ("a", "b", "c")
    assert parse(VLLM_API_KEY="e").server.api_keys == ("e",)


def test_keyword_arguments_become_flags() -> None:
    keywords = {
        "model": "a/b",
        "port": 7,
        "max_model_len": None,
        "enable_prefix_caching": False,
        "enable_sleep_mode": True,
        "served_model_name": ["x", "y"],
        "override_generation_config": {"top_k": 3},
    }
    flags = parse_flags(to_argv(keywords), {})
    assert (flags.engine.model, flags.server.port, flags.engine.max_model_len) == (Path("a/b"), 7, None)
    assert (flags.engine.enable_prefix_caching, flags.server.enable_sleep_mode) == (False, True)
    assert flags.server.served_model_names == ("x", "y")
    assert flags.server.override_generation_config == {"top_k": 3}


@pytest.mark.parametrize(
    ("words", "requests", "stats"),
    [
        ("", True, True),
        ("--disable-log-requests", False, True),
        ("--no-enable-log-requests", False, True),
        ("--enable-log-requests", True, True),
        ("--disable-log-stats", True, False),
        ("--no-disable-log-requests --no-disable-log-stats", True, True),
    ],
)
def test_log_flags_work_as_in_vllm(words: str, requests: bool, stats: bool) -> None:
    flags = parse(*words.split())
    assert (flags.server.log_requests, flags.server.log_stats) == (requests, stats)
    assert flags.warnings == ()


def test_berths_key_is_the_one_it_put_into_the_environment() -> None:
    """A sender of this key may act for other tenants; keys from the command line never allow that."""
    started_by_berth = {"VLLM_API_KEY": "k", "BERTH_INSTANCE_TOKEN": "t"}
    assert parse_flags(["x"], started_by_berth).server.berth_key == "k"
    assert parse_flags(["x", "--api-key", "a", "k"], started_by_berth).server.berth_key is None
    assert parse_flags(["x"], {"VLLM_API_KEY": "k"}).server.berth_key is None
    assert parse_flags(["x"], {"BERTH_INSTANCE_TOKEN": "t"}).server.berth_key is None
