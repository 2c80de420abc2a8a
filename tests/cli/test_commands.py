"""All commands but `run`, without a terminal: what they print, and their exit status."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.berth_process import ROOT, BerthProcess, free_port, running_berth
from tests.broken_checkpoints import DEMO, make_broken
from tests.cli.command import berth, environment
from tests.fake_hub import FakeHub, Refusal
from tests.gguf_files import tiny

pytestmark = pytest.mark.timeout(120)


def answer(url: str, *args: str) -> Any:
    """A successful command's output in JSON."""
    ran = berth(url, *args, "--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(ran.stdout)


def test_a_model_can_be_started_used_stopped_and_removed(url: str) -> None:
    started = berth(url, "start", "team/quiet")
    assert started.returncode == 0, started.stderr
    assert started.stdout.startswith("model team/quiet is running on port ")
    assert Path(started.stdout.splitlines()[1].removeprefix("log: ")).is_file()
    assert answer(url, "show", "team/quiet")["state"] == "running"

    header, *rows = berth(url, "ps").stdout.splitlines()
    assert header.split()[:6] == ["NAME", "ID", "STATUS", "PORT", "LAST", "USED"]
    [replica] = answer(url, "show", "team/quiet")["replicas"]
    [row] = [row for row in rows if row.startswith("team/quiet ")]
    assert row.split()[1:3] == [replica, "running"]

    assert "listening on" in berth(url, "logs", "team/quiet").stdout
    assert answer(url, "logs", replica, "--tail", "1")["lines"][-1].startswith("listening on")
    assert f"instance {replica} is stopped" in berth(url, "stop", replica).stdout
    assert replica not in berth(url, "ps").stdout
    assert replica in berth(url, "ps", "--all").stdout
    assert answer(url, "restart", "team/quiet")["state"] == "running"
    assert answer(url, "stop", "team/quiet", "--force")["state"] == "stopped"

    assert "--yes" in berth(url, "rm", replica).stderr  # there is no terminal to ask at
    assert answer(url, "rm", replica, "--yes") == {"object": "instance", "name": replica, "deleted": True}
    assert berth(url, "show", replica).returncode == 4


def test_all_models_are_stopped_at_once(url: str) -> None:
    answer(url, "start", "team/quiet")
    assert "all models are stopped" in berth(url, "stop", "--all").stdout
    assert answer(url, "show", "team/quiet")["state"] == "stopped"
    assert answer(url, "stop", "--all", "--force") == {"msg": "ok"}
    for wrong in (("stop",), ("stop", "team/quiet", "--all")):
        ran = berth(url, *wrong)
        assert (ran.returncode, "--all" in ran.stderr) == (2, True)


def test_the_models_are_listed(url: str) -> None:
    header, *rows = berth(url, "list").stdout.splitlines()
    assert header.split()[:3] == ["NAME", "STATUS", "SIZE"]
    assert {"talker", "team/quiet", "broken"} <= {row.split()[0] for row in rows}
    assert "chatty" in next(row for row in rows if row.startswith("talker"))
    listed = answer(url, "list")
    assert listed["object"] == "list"


def test_set_writes_the_file(url: str, catalog: Path) -> None:
    args = ("--timeout", "90", "--pin", "--param", "max_num_seqs=4")
    assert "model changing is changed" in berth(url, "assign", "changing", *args).stdout
    text = catalog.read_text()
    assert "# the catalog of the tests" in text
    assert "max_num_seqs: 4" in text
    record = answer(url, "show", "changing")
    assert (record["timeout"], record["pinned"], record["params"]) == (90, True, {"max_num_seqs": 4})
    assert answer(url, "assign", "changing", "--no-pin")["pinned"] is False
    assert berth(url, "assign", "changing").returncode == 2
    assert berth(url, "assign", "changing", "--param", "x").returncode == 2
    refused = berth(url, "assign", "talker", "--param", "max_num_seqs=4")
    assert refused.returncode == 1
    assert "its `command` in models.yaml" in refused.stderr


def test_parameters_are_merged_and_keep_their_types(url: str, catalog: Path) -> None:
    def assigned(*args: str) -> dict[str, Any]:
        params: dict[str, Any] = answer(url, "assign", "typed", *args)["params"]
        return params

    catalog.write_text(catalog.read_text() + "  typed:\n    engine: vllm\n    model: org/any\n")
    answer(url, "reload")
    given = ["a=8", "b=1e3", "c=true", "d=text", 'e={"x":[1]}', "f=0.50", "g=True", "h=NaN", 'i="8"', "k=007"]
    values = {"a": 8, "b": 1000, "c": True, "d": "text", "e": {"x": [1]}, "f": 0.5, "g": True, "h": "NaN"}
    values |= {"i": "8", "k": "007"}
    found = assigned(*(word for pair in given for word in ("--param", pair)))
    assert (found, repr(found)) == (values, repr(values))  # to Python alone, 1 equals 1.0
    assert assigned("--param", "a=9", "--timeout", "1200") == values | {"a": 9}
    assert "timeout: 1200\n" in catalog.read_text()
    assert assigned("--unset", "b", "--param", "i=null").keys() == values.keys() - {"b", "i"}
    assert answer(url, "assign", "typed", "--unset", "timeout")["timeout"] is None
    typo = berth(url, "assign", "typed", "--unset", "aa")
    assert (typo.returncode, "its parameters: a, c, d" in typo.stderr) == (1, True)
    assert berth(url, "assign", "typed", "--param", "a=1", "--unset", "a").returncode == 2


def test_the_catalog_is_reloaded(url: str, catalog: Path) -> None:
    before = catalog.read_text()
    catalog.write_text(before + "  fresh:\n    engine: command\n    command: [cat]\n")
    answer(url, "reload")
    assert answer(url, "show", "fresh")["state"] == "stopped"
    catalog.write_text(before + "  fresh: 7\n")
    wrong = berth(url, "reload")
    catalog.write_text(before)
    assert wrong.returncode == 1
    assert "fresh" in wrong.stderr
    answer(url, "reload")
    assert berth(url, "show", "fresh").returncode == 4


def test_a_failed_start_shows_the_cause_and_the_next_step(url: str) -> None:
    ran = berth(url, "start", "broken")
    assert ran.returncode == 1
    reason, *lines = ran.stderr.splitlines()
    assert reason.startswith("berth: model broken failed to start: the engine exited with code ")
    assert any("no such thing" in line for line in lines)
    assert "no such thing" in Path(lines[-1].removeprefix("  log: ")).read_text()
    assert "no such thing" in berth(url, "logs", "broken").stdout
    [row] = [row for row in berth(url, "list").stdout.splitlines() if row.startswith("broken ")]
    assert row.split()[1] == "failed" and "no such thing" in row
    assert "model broken is stopped" in berth(url, "stop", "broken").stdout
    assert answer(url, "show", "broken")["error"] is None
    envelope = json.loads(berth(url, "--json", "start", "broken").stdout)
    assert envelope["error"]["code"]


def test_a_model_that_never_ran_has_no_log(url: str, catalog: Path) -> None:
    ran = berth(url, "logs", "berth-demo")
    assert (ran.returncode, "berth start berth-demo" in ran.stderr) == (4, True)


def test_info_describes_the_server(url: str) -> None:
    info = answer(url, "info")
    assert info["url"] == url
    assert info["version"] in berth(url, "info").stdout


def test_a_download_can_be_followed_and_cancelled(url: str, hub: FakeHub) -> None:
    ran = berth(url, "pull", "berth/demo")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("berth/demo: ")
    lines = [json.loads(line) for line in berth(url, "pull", "berth/demo", "--json").stdout.splitlines()]
    assert lines[0] == {"status": "resolving"}
    assert lines[-1]["status"] == "success"
    assert answer(url, "rm", "berth/demo", "-y")["deleted"] is True
    assert berth(url, "rm", "berth/demo", "-y").returncode == 4


def test_the_quantisation_that_berth_chooses_is_named(url: str, hub: FakeHub) -> None:
    hub.models["org/m-GGUF"] = {f"m-{tag}.gguf": tiny() for tag in ("Q2_K", "Q4_K_M")}
    ran = berth(url, "pull", "org/m-GGUF")
    assert ran.returncode == 0, ran.stderr
    assert "takes org/m-GGUF:Q4_K_M" in ran.stderr.splitlines()
    assert ran.stdout.startswith("org/m-GGUF:Q4_K_M: ")
    error = berth(url, "pull", "org/m-GGUF:Q6_K").stderr.splitlines()[-1]
    assert error == "berth: org/m-GGUF has no quantisation Q6_K; it has Q2_K, Q4_K_M"
    assert answer(url, "rm", "org/m-GGUF:Q4_K_M", "-y")["deleted"] is True


def test_the_hubs_refusal_is_shown(url: str, hub: FakeHub) -> None:
    hub.refusal = Refusal(404, "RepoNotFound")
    try:
        ran = berth(url, "pull", "no/such")
        error = json.loads(berth(url, "pull", "no/such", "--json").stdout.splitlines()[-1])
    finally:
        hub.refusal = None
    assert ran.returncode == 4
    assert ran.stderr.splitlines()[-1].startswith("berth: there is no model 'no/such'")
    assert error["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("command", [("ps",), ("show", "x"), ("run", "x", "Hello"), ("pull", "x/y")])
def test_an_unreachable_server_is_reported(command: tuple[str, ...]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    ran = berth(url, *command)
    assert ran.returncode == 3
    assert len(ran.stderr.splitlines()) == 1
    assert url in ran.stderr
    assert "berth serve" in ran.stderr
    assert json.loads(berth(url, *command, "--json").stdout)["error"]["type"] == "unreachable_error"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("sotp", "x"), "Did you mean"),
        (("ps", "--jsn"), "--jsn"),
        (("stop",), "NAME"),
        (("sleep", "x", "--level", "4"), "--level"),
        (("kill", "x"), "berth stop"),
        (("help", "sotp"), "stop"),
        (("stop", "--force"), "berth stop --help"),
        (("ps", "--url", "ftp://x"), "ftp://x"),
        (("show", ""), "empty"),
        (("run", "x", "--json"), "prompt"),
    ],
)
def test_wrong_usage_is_reported(url: str, args: tuple[str, ...], says: str) -> None:
    ran = berth(url, *args, stdin="")
    assert ran.returncode == 2
    assert says in ran.stderr + ran.stdout
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "command", ["list", "ps", "show", "run", "start", "stop", "sleep", "assign", "bench", "ls"]
)
def test_each_command_has_help(url: str, command: str) -> None:
    by_option, by_command = berth(url, command, "--help"), berth(url, "help", command)
    assert (by_option.returncode, by_option.stdout) == (0, by_command.stdout)
    assert by_option.stdout.startswith(f"Usage: berth {command} ")


def test_the_version_is_that_of_the_server(url: str) -> None:
    version = answer(url, "version")
    assert version == {"version": version["server"], "url": url, "server": version["version"]}
    assert berth(url, "--version").stdout == f"berth {version['version']}\n"
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert answer(nowhere, "version")["server"] is None
    assert nowhere in berth(nowhere, "version").stdout


def test_commands_have_other_names(url: str) -> None:
    assert answer(url, "ls")["data"][0]["name"] == answer(url, "list")["data"][0]["name"]
    assert answer(url, "status")["object"] == "list"


def test_sleep_at_level_3_is_a_stop(url: str) -> None:
    assert answer(url, "start", "team/quiet")["state"] == "running"
    assert "model team/quiet is stopped" in berth(url, "sleep", "team/quiet", "--level", "3").stdout


def test_options_may_come_before_or_after_the_command(server: BerthProcess) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert berth(nowhere, "--url", server.url, "info").returncode == 0
    assert berth(nowhere, "info", "--url", f"127.0.0.1:{server.port}").returncode == 0
    assert berth(server.url, "info", "--url", nowhere).returncode == 3


def test_keys(tmp_path: Path) -> None:
    with running_berth(tmp_path, API_KEYS="some", ADMIN_API_KEYS="all") as server:
        none = berth(server.url, "ps")
        assert (none.returncode, "BERTH_API_KEY" in none.stderr) == (5, True)
        less = berth(server.url, "start", "berth-demo", "--api-key", "some")
        assert less.returncode == 5
        assert "use one of ADMIN_API_KEYS" in less.stderr
        assert "set BERTH_API_KEY to it" in less.stderr
        assert berth(server.url, "ps", env={"BERTH_API_KEY": "all"}).returncode == 0


def test_a_request_key_sees_the_models_it_may_use(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ops: all admin\nsome: few models=berth-*\nother: none models=x*\n")
    keys.chmod(0o600)
    with running_berth(tmp_path, API_KEYS_FILE=str(keys)) as server:
        few, other = {"BERTH_API_KEY": "few"}, {"BERTH_API_KEY": "none"}
        listed = berth(server.url, "list", env=few).stdout.splitlines()
        assert [row.split()[:2] for row in listed] == [["NAME", "STATUS"], ["berth-demo", "stopped"]]
        assert (
            json.loads(berth(server.url, "list", "--json", env=few).stdout)["data"][0]["id"] == "berth-demo"
        )
        assert berth(server.url, "list", env=other).stdout.splitlines() == ["NAME  STATUS  CONTEXT"]
        assert "berth-demo" not in berth(server.url, "ps", env=few).stdout  # it doesn't run
        assert (
            berth(server.url, "run", "berth-demo", "Hello", "--set", "max_tokens=3", env=few).returncode == 0
        )
        assert "berth-demo  running" in berth(server.url, "ps", env=few).stdout
        assert "berth-demo" in berth(server.url, "show", "berth-demo", env=few).stdout
        assert berth(server.url, "show", "berth-demo", env=other).returncode == 4
        assert berth(server.url, "info", env=few).returncode == 5
        completion = {"_BERTH_COMPLETE": "complete_bash", "COMP_WORDS": "berth run ber", "COMP_CWORD": "2"}
        assert berth(server.url, env=few | completion).stdout.split() == ["berth-demo"]


def test_serve_is_the_server(tmp_path: Path) -> None:
    """At the given address; it exits as the server does."""
    port, log = free_port(), tmp_path / "berth.log"
    files = {"LOG_DIR": "logs", "STATE_DIR": "state", "MODELS_FILE": "models.yaml"}
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(ROOT / "cli" / "berth"), "serve", "--host", "127.0.0.1", "--port", str(port), "--json"],
            env=environment("", **{name: str(tmp_path / path) for name, path in files.items()}),
            stdout=out,
            stderr=out,
        )
    try:
        until = time.monotonic() + 60
        while (ran := berth(f"127.0.0.1:{port}", "info")).returncode == 3:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
        assert ran.returncode == 0, ran.stderr
    finally:
        process.terminate()
        status = process.wait(60)
    assert status == 0
    lines = [json.loads(line)["message"] for line in log.read_text().splitlines()]
    assert [line for line in lines if f"127.0.0.1:{port}" in line]


def test_names_are_completed_by_the_shell(server: BerthProcess) -> None:
    def completed(words: str, url: str = server.url) -> list[str]:
        env = {
            "_BERTH_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        ran = berth(url, env=env)
        assert ran.stderr == ""
        return ran.stdout.split()

    assert completed("berth run tal") == ["talker"]
    assert completed("berth stop team") == ["team/quiet"]
    assert completed("berth stop t", f"http://127.0.0.1:{free_port()}") == []
    assert "serve" in completed("berth se")


def test_nothing_heavy_is_loaded_for_help() -> None:
    probe = """
import sys; sys.argv = ["berth", "--help"]
from cli.__main__ import main
status = main()
heavy = {"httpx", "rich.console", "pydantic", "fastapi", "torch"} & set(sys.modules)
sys.exit(f"help loads {heavy}" if heavy else status)
"""
    ran = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Exit status:" in ran.stdout


def test_a_model_that_cannot_start_is_reported_with_the_next_step(tmp_path: Path) -> None:
    models = make_broken("diffuses-text", tmp_path / "models").parent
    shutil.copytree(DEMO, models / "large")
    (tmp_path / "models.yaml").write_text(f"models: {{gone: {{path: {tmp_path}/none}}}}")
    settings = {"MODEL_DIRS": str(models), "MODELS_FILE": str(tmp_path / "models.yaml")}
    with running_berth(
        tmp_path, **settings, HOST_MEMORY="0.0001", API_KEYS="r", ADMIN_API_KEYS="a"
    ) as server:
        steps = {
            "diffuses-text": "`engine` in models.yaml",
            "large": "`berth ps` shows",
            "gone": "`berth list` shows",
        }
        for name, step in steps.items():
            for command in (["start", name], ["run", name, "hi"], ["restart", name]):
                refused = berth(server.url, *command, "--api-key", "a")
                assert refused.returncode == (4 if name == "gone" else 1)
                assert step in refused.stderr
                assert "berth stop" not in refused.stderr and "berth logs" not in refused.stderr
        for key in ("a", "r"):
            assert "unsupported" in berth(server.url, "show", "diffuses-text", "--api-key", key).stdout
            [row] = [
                r
                for r in berth(server.url, "list", "--api-key", key).stdout.splitlines()
                if "diffuses-text" in r
            ]
            assert "unsupported" in row and "vLLM may run it" in row


def test_a_changed_and_restarted_model_runs_when_the_command_returns(url: str, catalog: Path) -> None:
    text = catalog.read_text()
    try:
        assert berth(url, "start", "changing").returncode == 0
        ran = berth(url, "assign", "changing", "--param", "max_num_seqs=3", "--restart")
        assert ran.returncode == 0, ran.stderr
        assert "is running on port" in ran.stdout and "is changed" in ran.stderr
        assert answer(url, "sleep", "changing")["state"] == "sleeping"
        assert answer(url, "assign", "changing", "--timeout", "77", "--restart")["state"] == "running"
        assert answer(url, "stop", "changing")["state"] == "stopped"
        quiet = berth(url, "assign", "changing", "--timeout", "78", "--restart")
        assert quiet.stdout == "model changing is changed\n", "what didn't run isn't started"
    finally:
        catalog.write_text(text)
        berth(url, "reload")
