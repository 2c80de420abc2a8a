"""A Berth that is attacked, with three keys, a real engine, and a victim that streams all the time."""

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
from tests.attack.asking import JSON, ask
from tests.attack.leftovers import belongs_to, files_with, is_dead, still_there, told
from tests.attack.memory import Watch
from tests.attack.verdict import MOST_OVER_S, Seen
from tests.berth_process import ROOT, BerthProcess
from tests.faults.environment import FAULT_IN_LOG, eventually, free_ports
from tests.faults.journal import Reply
from tests.victim import Stream, Victim, longest_gap, streaming

MODEL, DEMO = "berth-demo", "demo"  # the engine's model, and its instance
SECRET = "hf_that-stood-in-an-engines-log"
START_S = 120.0
_QUIET_S = 0.8  # watched before an attack, and after it
_CALM_S = 0.15  # the longest gap of a victim that nobody disturbs; more of it is waited out for a while
_MORE_DESCRIPTORS = 8
_SETTLE_S = 10.0


class Ground:
    """For a `Field`. What attacks do and ask is here; what they are, in rows/."""

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
        self.watch: Watch | None = None
        self.seen = Seen()  # of the latest attempt
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

    def __enter__(self) -> Ground:
        try:
            self.berth.wait_until_serving()
            spec = {"name": DEMO, "model_name": MODEL, "timeout": 0}
            made = self.admin("POST", f"/instances?wait={START_S:.0f}", spec, timeout_s=START_S)
            assert made.status == 201, f"{made}\n{self.berth.output()[-3000:]}"
            self.engine_pid = int(json.loads(made.body)["pid"])
            self.watch = Watch(self.berth.pid, self.engine_pid)
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
        # All that is loaded late, the compiler of schemas among it, and the KV cache's first pages.
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
        """At once; whatever Berth is doing."""
        if self.has_ended:
            return
        self.has_ended = True
        if self.watch is not None:
            self.watch.close()
        self._ending.close()
        self.berth.close()

    def end_well(self) -> list[str]:
        """By SIGTERM; what is wrong about its end, or in what it has logged."""
        self._ending.close()
        self.berth.terminate()
        problems = []
        try:
            if (status := self.berth.wait()) != 0:
                problems.append(f"Berth's exit status is {status}")
        except subprocess.TimeoutExpired:
            problems.append("Berth doesn't end")
        if left := self.berth.survivors():
            problems.append(f"processes left: {told(left)}")
        return problems + self.keys_in_logs()

    # What attackers do

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
        """By the attacker's key unless another is given; None = without one. The status is noted."""
        reply = self._ask(method, target, body, self.attacker_key if key == "" else key, timeout_s, headers)
        self.seen.statuses[str(reply.status or "no answer")] += 1
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
        """What an attacker got."""
        self.seen.statuses[str(status)] += 1

    @contextmanager
    def instance(self, name: str, command: list[str], *, wait_s: float = 8, **fields: Any) -> Iterator[Reply]:
        """An engine that is there for an attack, and what was answered to its creation."""
        spec = {"name": name, "model_name": name, "engine": "command", "command": command, **fields}
        try:
            yield self.admin("POST", f"/instances?wait={wait_s}", {"timeout": 0, **spec})
        finally:
            self.admin("DELETE", f"/instances/{name}?force=true")

    # What is watched

    def streams(self, since: float) -> list[Stream]:
        assert self._victim is not None
        return self._victim.streams(since)

    @contextmanager
    def measured(self, body_bytes: int = 0) -> Iterator[None]:
        """Around the attack itself: what was prepared before and is checked afterwards isn't in it.

        It lasts until the victim is as undisturbed as before: what an engine still does for a client that has
        gone is the attack's doing, too.
        """
        assert self.watch is not None
        self.seen = seen = Seen(body_bytes=body_bytes)
        began, seen.undisturbed_s = self._calm(time.monotonic(), _CALM_S)
        self.watch.begin()
        started = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            end, _ = self._calm(ended, seen.undisturbed_s + _CALM_S)
            streams = self.streams(began)
            gap = longest_gap(streams, started, end)
            seen.gap_s = gap.seconds
            if seen.over_s > MOST_OVER_S:
                whose = (
                    "both of the victim's streams" if gap.whose == "all" else "one of the victim's streams"
                )
                since = gap.began - started
                seen.notes.append(f"{whose} stood still from {since:.2f} s to {since + gap.seconds:.2f} s")
            seen.took_s = ended - started
            seen.berth_bytes = self.watch.berth.grown()
            seen.engine_bytes = self.watch.engine.grown()
            seen.problems += [f"the victim's stream: {one.problem}" for one in streams if one.problem][:2]

    def _calm(self, since: float, most_s: float) -> tuple[float, float]:
        """When the victim has gone on for a while without a longer gap, and the longest of that while."""
        while True:
            time.sleep(_QUIET_S)
            now = time.monotonic()
            begin = now - _QUIET_S
            gap = longest_gap(self.streams(begin), begin, now).seconds
            if gap <= most_s or now - since > _SETTLE_S:
                return now, gap

    def settle(self) -> list[str]:
        """What isn't as it was before the attack, once it has had time to become so."""
        assert self.watch is not None
        if self.watch.has_ended_them:
            return ["they took more than 6 GiB and were ended"]
        try:
            problems = self.vital_problems()
        except (OSError, ValueError) as error:
            return [f"Berth can't be asked how it is: {error!r}"]
        if not problems:
            problems += [f"processes left: {left}" for left in still_there(self._strangers)]
            problems += [f"{left} descriptors leaked" for left in still_there(self._more_descriptors)]
        log = self.berth.output()
        problems += [f"in Berth's log: {one[0]}" for one in FAULT_IN_LOG.finditer(log[self._log_read :])][:2]
        self._log_read = len(log)
        return problems

    def vital_problems(self) -> list[str]:
        """Berth and engine answer, and are the same processes."""
        if is_dead(self.berth.pid):
            return ["Berth is dead"]
        found = self.admin("GET", f"/instances/{DEMO}", timeout_s=15)
        if found.status != 200:
            return [f"Berth answers {found.status or 'nothing'} to its admin"]
        record = json.loads(found.body)
        if (record["status"], record["pid"]) != ("running", self.engine_pid):
            return [f"the engine is {record['status']}, and has been ended"]
        began = time.monotonic()
        with suppress(AssertionError):
            eventually("chunks come", lambda: any(one.times for one in self.streams(began)), 10)
            return []
        return ["the victim gets no more chunks"]

    def _strangers(self) -> list[str]:
        new = (one for one in self.berth.survivors() if one.pid not in self._processes)
        return told(one for one in new if not belongs_to(one, self.engine_pid))

    def _more_descriptors(self) -> int:
        more = psutil.Process(self.berth.pid).num_fds() - self._descriptors
        return more if more > _MORE_DESCRIPTORS else 0

    def keys_in_logs(self) -> list[str]:
        """Log files in which a key stands."""
        files = [self.folder / "berth.log", *(self.folder / "logs").rglob("*")]
        found = files_with(files, (self.victim_key, self.attacker_key, self.admin_key))
        return [f"a key stands in {name}" for name in found]


def _models() -> dict[str, Any]:
    """Beside the demo model: one at a time, one that fails, one that nobody has started."""
    endless = ("--on", "/v1/chat/completions=endless")  # that fills all buffers soon
    return {
        "limited": {"command": hostile_engine.command(*endless), "concurrency_limit": 1},
        "failing": {"command": fake_engine.command("--fail-with", f"loading with token {SECRET}")},
        "cold": {"command": fake_engine.command()},
    }
