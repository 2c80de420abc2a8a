"""The attacked Berth, with three keys, a real engine, and a victim that streams all the time."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests import fake_engine
from tests.attack import hostile_engine
from tests.attack.leaks import belongs_to, described, files_with, is_dead, still_there
from tests.attack.measurement import MOST_OVER_S, Measurement
from tests.attack.memory import MemoryMonitor
from tests.attack.raw_client import JSON, ask
from tests.berth_process import ROOT, BerthProcess
from tests.faults.environment import FAULT_IN_LOG, eventually, free_ports
from tests.faults.journal import Reply
from tests.victim import Stream, Victim, longest_gap, streaming

MODEL, DEMO = "berth-demo", "demo"  # the engine's model, and its instance
SECRET = "hf_that-stood-in-an-engines-log"
START_S = 120.0
_QUIET_S = 0.8  # observed before an attack, and after it
_CALM_S = 0.15  # the longest gap of an undisturbed victim; a longer one is waited out for a while
_MORE_DESCRIPTORS = 8
_SETTLE_S = 10.0


class AttackEnvironment:
    """The environment of one `AttackGroup`, with the operations that attacks (in rows/) use."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        *,
        root: Path = ROOT,
        has_keys: bool = True,
        models: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.root = root
        token = secrets.token_hex(6)
        names = ("victim", "attacker", "admin")
        self.victim_key, self.attacker_key, self.admin_key = (f"key-of-{name}-{token}" for name in names)
        self._has_keys = has_keys
        self.catalog = {**_models(), **(models or {})}
        self.write_catalog(self.catalog)
        self.berth = BerthProcess(folder, root=root, **{**self._settings(), **(settings or {})})
        self.port = self.berth.port
        self._ending = ExitStack()
        self._victim: Victim | None = None
        self.watch: MemoryMonitor | None = None
        self.measurement = Measurement()  # of the current attempt
        self._log_read = 0
        self.has_ended = False

    def _settings(self) -> dict[str, str]:
        keys = {
            "API_KEYS": f"{self.victim_key},{self.attacker_key}",
            "ADMIN_API_KEYS": self.admin_key,
        }
        return {
            **(keys if self._has_keys else {"API_KEYS": "", "ADMIN_API_KEYS": ""}),
            "MODELS_FILE": str(self.folder / "models.yaml"),
            "MODEL_DIRS": str(ROOT / "models"),
            "VLLM_BASE_PORT": str(free_ports()),
            "STATE_DIR": str(self.folder / "state"),
            "STOP_GRACE": "1",
            "DRAIN_TIMEOUT": "1",
            "HEALTH_INTERVAL": "0.5",
            "STREAM_KEEPALIVE": "0.5",
            "CLIENT_TIMEOUT": "2",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def write_catalog(self, models: Mapping[str, Any]) -> None:
        self.catalog_file.write_text(json.dumps({"models": models}))  # JSON is YAML

    @property
    def catalog_file(self) -> Path:
        return self.folder / "models.yaml"

    def __enter__(self) -> AttackEnvironment:
        try:
            self.berth.wait_until_serving()
            spec = {"name": DEMO, "model_name": MODEL, "timeout": 0}
            made = self.admin("POST", f"/instances?wait={START_S:.0f}", spec, timeout_s=START_S)
            assert made.status == 201, f"{made}\n{self.berth.output()[-3000:]}"
            self.engine_pid = int(json.loads(made.body)["pid"])
            self.watch = MemoryMonitor(self.berth.pid, self.engine_pid)
            self._begin_victim()
            self._processes = {process.pid for process in self.berth.survivors()}
            self._descriptors = psutil.Process(self.berth.pid).num_fds()
        except BaseException:
            self.end()
            raise
        return self

    def _begin_victim(self) -> None:
        self._victim = self._ending.enter_context(streaming(self.port, 2, MODEL, self.victim_key))
        self._victim.wait_until_streaming()
        # Warm up everything that is loaded lazily: the schema compiler, and the KV cache's first pages.
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
        turn = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
        warm = self.as_victim(
            "POST", "/v1/chat/completions", {**turn, "response_format": schema}, timeout_s=60
        )
        assert warm.status == 200, str(warm)
        time.sleep(2.0)

    def __exit__(self, kind: object, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End at once, whatever Berth is doing."""
        if self.has_ended:
            return
        self.has_ended = True
        if self.watch is not None:
            self.watch.close()
        self._ending.close()
        self.berth.close()

    def end_well(self) -> list[str]:
        """End by SIGTERM; returns problems of the shutdown and the logs."""
        self._ending.close()
        self.berth.terminate()
        problems = []
        try:
            if (status := self.berth.wait()) != 0:
                problems.append(f"Berth's exit status is {status}")
        except subprocess.TimeoutExpired:
            problems.append("Berth does not end")
        if left := self.berth.survivors():
            problems.append(f"processes left: {described(left)}")
        return problems + self.keys_in_logs()

    # Operations of attackers

    def ask(
        self,
        method: str,
        target: str,
        body: Any = None,
        *,
        key: str | None = "",
        timeout_s: float = 28.0,
        **headers: str,
    ) -> Reply:
        """Send a request, by default with the attacker's key; None = without a key. Records the status."""
        reply = self._ask(method, target, body, self.attacker_key if key == "" else key, timeout_s, headers)
        self.measurement.statuses[str(reply.status or "no answer")] += 1
        return reply

    def admin(self, method: str, target: str, body: Any = None, *, timeout_s: float = 60.0) -> Reply:
        return self._ask(method, target, body, self.admin_key, timeout_s, {})

    def as_victim(self, method: str, target: str, body: Any = None, *, timeout_s: float = 28.0) -> Reply:
        return self._ask(method, target, body, self.victim_key, timeout_s, {})

    def _ask(
        self,
        method: str,
        target: str,
        body: Any,
        key: str | None,
        timeout_s: float,
        headers: Mapping[str, str],
    ) -> Reply:
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if content is not None:
            given = {**JSON, **given}
        if key is not None and self._has_keys:
            given["authorization"] = f"Bearer {key}"
        return ask(self.port, method, target, content, given, timeout_s)

    def connect(self, timeout_s: float = 10.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout_s)

    def note(self, status: object) -> None:
        """Record what the attacker got."""
        self.measurement.statuses[str(status)] += 1

    @contextmanager
    def instance(self, name: str, command: list[str], *, wait_s: float = 8, **fields: Any) -> Iterator[Reply]:
        """An instance for one attack; yields the response to its creation."""
        spec = {"name": name, "model_name": name, "engine": "command", "command": command, **fields}
        try:
            yield self.admin("POST", f"/instances?wait={wait_s}", {"timeout": 0, **spec})
        finally:
            self.admin("DELETE", f"/instances/{name}?force=true")

    # Measurements

    def streams(self, since: float) -> list[Stream]:
        assert self._victim is not None
        return self._victim.streams(since)

    @contextmanager
    def measured(self, body_bytes: int = 0) -> Iterator[None]:
        """Measure the attack itself, without its preparation and its checks.

        The measurement ends when the victim is as undisturbed as before: work that an engine still does for a
        disconnected client counts too.
        """
        assert self.watch is not None
        self.measurement = measurement = Measurement(body_bytes=body_bytes)
        began, measurement.undisturbed_s = self._calm(time.monotonic(), _CALM_S)
        self.watch.begin()
        started = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            end, _ = self._calm(ended, measurement.undisturbed_s + _CALM_S)
            streams = self.streams(began)
            gap = longest_gap(streams, started, end)
            measurement.gap_s = gap.seconds
            if measurement.over_s > MOST_OVER_S:
                whose = (
                    "both of the victim's streams" if gap.whose == "all" else "one of the victim's streams"
                )
                since = gap.began - started
                measurement.notes.append(f"{whose} stalled from {since:.2f} s to {since + gap.seconds:.2f} s")
            measurement.took_s = ended - started
            measurement.berth_bytes = self.watch.berth.grown()
            measurement.engine_bytes = self.watch.engine.grown()
            measurement.problems += [f"the victim's stream: {one.problem}" for one in streams if one.problem][
                :2
            ]

    def _calm(self, since: float, most_s: float) -> tuple[float, float]:
        """Wait until the victim streams without a longer gap; returns the time and its longest gap."""
        while True:
            time.sleep(_QUIET_S)
            now = time.monotonic()
            begin = now - _QUIET_S
            gap = longest_gap(self.streams(begin), begin, now).seconds
            if gap <= most_s or now - since > _SETTLE_S:
                return now, gap

    def settle(self) -> list[str]:
        """Differences from before the attack, after some time to settle."""
        assert self.watch is not None
        if self.watch.has_ended_them:
            return ["Berth and engine used more than 6 GiB and were killed"]
        try:
            problems = self.vital_problems()
        except (OSError, ValueError) as error:
            return [f"Berth's state can't be read: {error!r}"]
        if not problems:
            problems += [f"processes left: {left}" for left in still_there(self._strangers)]
            problems += [f"{left} descriptors leaked" for left in still_there(self._more_descriptors)]
        log = self.berth.output()
        problems += [f"in Berth's log: {one[0]}" for one in FAULT_IN_LOG.finditer(log[self._log_read :])][:2]
        self._log_read = len(log)
        return problems

    def vital_problems(self) -> list[str]:
        """Problems unless Berth and engine respond, and are the same processes."""
        if is_dead(self.berth.pid):
            return ["Berth is dead"]
        found = self.admin("GET", f"/instances/{DEMO}", timeout_s=15)
        if found.status != 200:
            return [f"Berth responds with {found.status or 'nothing'} to an admin"]
        record = json.loads(found.body)
        if (record["status"], record["pid"]) != ("running", self.engine_pid):
            return [f"the engine was restarted or is {record['status']}"]
        began = time.monotonic()
        with suppress(AssertionError):
            eventually("chunks arrive", lambda: any(one.times for one in self.streams(began)), 10)
            return []
        return ["the victim gets no chunks any more"]

    def _strangers(self) -> list[str]:
        new = (process for process in self.berth.survivors() if process.pid not in self._processes)
        return described(process for process in new if not belongs_to(process, self.engine_pid))

    def _more_descriptors(self) -> int:
        more = psutil.Process(self.berth.pid).num_fds() - self._descriptors
        return more if more > _MORE_DESCRIPTORS else 0

    def keys_in_logs(self) -> list[str]:
        """Log files that contain a key."""
        files = [self.folder / "berth.log", *(self.folder / "logs").rglob("*")]
        found = files_with(files, (self.victim_key, self.attacker_key, self.admin_key))
        return [f"{name} contains a key" for name in found]


def _models() -> dict[str, Any]:
    """Besides the demo model: one with a concurrency limit of 1, one that fails, one never started."""
    endless = ("--on", "/v1/chat/completions=endless")  # soon fills all buffers
    return {
        "limited": {"command": hostile_engine.command(*endless), "concurrency_limit": 1},
        "failing": {"command": fake_engine.command("--fail-with", f"loading with token {SECRET}")},
        "cold": {"command": fake_engine.command()},
    }
