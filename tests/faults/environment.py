"""A Berth for fault injection: another engine serves throughout; afterwards nothing may be left over."""

from __future__ import annotations

import json
import random
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests import fake_engine
from tests.berth_process import BerthProcess, is_free
from tests.faults.journal import Journal, Outcome, Reply

BYSTANDER = "bystander"
NUM_PORTS = 5
TIMEOUT_S = 30.0
_MIB = 1 << 20
_JSON = {"Content-Type": "application/json"}
_RSS_SLACK_BYTES = (
    80 * _MIB
)  # what the allocator keeps after 60 clients with 1 MB each, and modules loaded late
_BYSTANDER_PAUSE_S = 0.05
_BYSTANDER_SLOWEST_S = 5.0  # on a shared machine
FAULT_IN_LOG = re.compile(
    r"^.*(?:Traceback|never retrieved|the scaler failed|Error in Berth|an error in Berth|never awaited).*$",
    re.MULTILINE,
)


class FaultEnvironment:
    """A Berth with a bystander engine, and its resources before the first case."""

    def __init__(
        self,
        directory: Path,
        journal: Journal,
        engine_env: Mapping[str, str] | None = None,
        **settings: str,
    ) -> None:
        self._engine_env = dict(engine_env or {})
        self.directory = directory
        self.journal = journal
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "models.yaml").write_text('{"models": {}}')
        defaults = {
            "STATE_DIR": str(directory / "state"),
            "MODELS_FILE": str(directory / "models.yaml"),
            "MODEL_DIRS": str(directory / "no-models"),
            "VLLM_BASE_PORT": str(free_ports()),
            "STOP_GRACE": "1",
            "DRAIN_TIMEOUT": "2",
            "HEALTH_INTERVAL": "0.5",
        }
        settings = {**defaults, **settings}
        self.berth = BerthProcess(directory, **settings)
        self.berth.base_port = int(settings["VLLM_BASE_PORT"])
        self.process = psutil.Process(self.berth.pid)
        self.slowest_s = 0.0  # of the bystander's responses since the last case
        self.most_rss_bytes = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FaultEnvironment:
        try:
            self.berth.wait_until_serving()
            made = self.create(BYSTANDER, fake_engine.command())
            assert made.status == 201, f"{made}\n{self.tail_of_log()}"
            with self.instance("warm-up", fake_engine.command()):  # so that late imports are done
                assert self.complete("warm-up").outcome is Outcome.ANSWERED
                assert self.complete("warm-up", stream=True).is_done
            self.start_bystander()
            time.sleep(0.3)
            self._descriptors = self.process.num_fds()
            self._rss_bytes = self.process.memory_info().rss
            self._processes = {process.pid for process in self.berth.survivors()}
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.stop_bystander()
            if kind is None:
                self.berth.terminate()
                status = self.berth.wait()
                assert status == 0, f"exit status {status}: {self.tail_of_log()}"
                assert self.berth.survivors() == [], "processes are left"
                assert is_free(self.berth.port), "Berth's port is not free"
                faults = [match[0] for match in FAULT_IN_LOG.finditer(self.berth.output())]
                assert not faults, f"in Berth's log: {faults[:5]}\n{self.tail_of_log()}"
        finally:
            self._end()

    def _end(self) -> None:
        self._stop.set()
        self.berth.close()

    # For the cases

    @contextmanager
    def instance(
        self, name: str, command: list[str], *, wait_s: float = TIMEOUT_S, **fields: Any
    ) -> Iterator[str]:
        """An instance that is deleted afterwards, in whatever state it is."""
        self.create(name, command, wait_s=wait_s, **fields)
        try:
            yield name
        finally:
            gone = self.control("DELETE", f"/instances/{name}?force=true")
            assert gone.status in (200, 204), f"it can't be deleted: {gone}"

    def create(self, name: str, command: list[str], *, wait_s: float = TIMEOUT_S, **fields: Any) -> Reply:
        body = {
            "model_name": name,
            "name": name,
            "engine": "command",
            "command": command,
            "timeout": 0,
            "env": self._engine_env,
            **fields,
        }
        return self.control("POST", f"/instances?wait={wait_s}" if wait_s else "/instances", body)

    def record(self, name: str) -> dict[str, Any]:
        found = self.control("GET", f"/instances/{name}")
        assert found.status == 200, str(found)
        record: dict[str, Any] = json.loads(found.body)
        return record

    def wait_until(
        self, name: str, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = TIMEOUT_S
    ) -> dict[str, Any]:
        """The record once `wanted` is true of it."""
        deadline = time.monotonic() + timeout_s
        while not wanted(record := self.record(name)):
            assert time.monotonic() < deadline, f"it never became true: {json.dumps(record)[:1500]}"
            time.sleep(0.05)
        return record

    def wait_for_status(self, name: str, *statuses: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        return self.wait_until(name, lambda record: record["status"] in statuses, timeout_s)

    def complete(
        self, name: str, *, stream: bool = False, timeout_s: float = TIMEOUT_S, **fields: Any
    ) -> Reply:
        """A completion by an instance; counted as lost if it is neither answered nor clearly refused."""
        body = {"model": name, "prompt": "x", "max_tokens": 4, "stream": stream, **fields}
        return self.ask("POST", f"/proxy/{name}/v1/completions", body, timeout_s=timeout_s)

    def start_requests(self, name: str, number: int, **fields: Any) -> Callable[[], list[Reply]]:
        """Start `number` concurrent completions; the returned function waits for their replies."""
        pool = ThreadPoolExecutor(number)
        futures = [pool.submit(self.complete, name, **fields) for _ in range(number)]

        def replies() -> list[Reply]:
            with pool:
                return [future.result() for future in futures]

        return replies

    def ask(self, method: str, path: str, body: Any = None, *, timeout_s: float = TIMEOUT_S) -> Reply:
        """A client's request, counted by its outcome."""
        reply = request(self.berth.url, method, path, body, timeout_s)
        self.journal.count(reply.outcome, f"{method} {path}: {reply}")
        return reply

    def control(self, method: str, path: str, body: Any = None, *, timeout_s: float = 60.0) -> Reply:
        """An operator's request, counted like any other."""
        return self.ask(method, path, body, timeout_s=timeout_s)

    def connect(self, timeout_s: float = TIMEOUT_S) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.berth.port), timeout_s)

    # Observations

    def engine(self, name: str) -> psutil.Process:
        """The engine's own process."""
        return psutil.Process(self.record(name)["pid"])

    def tail_of_log(self, size: int = 3000) -> str:
        return self.berth.output()[-size:]

    @contextmanager
    def memory_bounded(self, mib: float) -> Iterator[None]:
        """Checks, by sampling, that Berth's own memory grows by no more than this."""
        before = self.process.memory_info().rss
        most = [before]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                most[0] = max(most[0], self.process.memory_info().rss)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        grown = (most[0] - before) / _MIB
        assert grown < mib, f"Berth's memory has grown by {grown:.0f} MiB, {mib:.0f} are allowed"

    # The bystander

    def start_bystander(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._serve_bystander, name="bystander")
        self._thread.start()

    def stop_bystander(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _serve_bystander(self) -> None:
        """A client that keeps sending requests, every fourth for a stream; all must be served."""
        number = 0
        with _client(self.berth.url, TIMEOUT_S) as http:
            while not self._stop.wait(_BYSTANDER_PAUSE_S):
                number += 1
                body = {"prompt": "x", "max_tokens": 5, "stream": number % 4 == 0}
                reply = _request(http, "POST", f"/proxy/{BYSTANDER}/v1/completions", body)
                is_right = reply.status == 200 and b"token4" in reply.body and not reply.broken
                is_right = is_right and (reply.is_done or not body["stream"])
                self.journal.count(
                    Outcome.ANSWERED if is_right else Outcome.LOST, f"the bystander's request: {reply}"
                )
                self.slowest_s = max(self.slowest_s, reply.seconds)

    # After a case

    def settle(self) -> list[str]:
        """The differences from before the first case, after some time to settle."""
        problems = []
        if left := _eventually(self.unexpected_processes):
            problems.append(f"processes left: {left}")
        if excess := _eventually(lambda: max(0, self.process.num_fds() - self._descriptors)):
            problems.append(f"{excess} descriptors leaked of {self._descriptors}: {self._open_descriptors()}")
        grown = self.process.memory_info().rss - self._rss_bytes
        if grown > _RSS_SLACK_BYTES:
            problems.append(f"Berth's memory has grown by {grown / _MIB:.0f} MiB")
        if self.slowest_s > _BYSTANDER_SLOWEST_S:
            problems.append(f"another instance's client waited {self.slowest_s:.1f} s")
        self.slowest_s = 0.0
        records = json.loads(request(self.berth.url, "GET", "/instances?all=true", None, TIMEOUT_S).body)[
            "data"
        ]
        if [record["instance_id"] for record in records] != [BYSTANDER]:
            problems.append(f"instances left: {[record['instance_id'] for record in records]}")
        busy = [record for record in records if record["in_flight"] > 1]
        if busy:
            problems.append(f"leases left: {busy[0]['in_flight']}")
        taken = range(self.berth.base_port, self.berth.base_port + NUM_PORTS)
        used = {record["port"] for record in records}
        problems += [f"port {port} is not free" for port in taken if port not in used and not is_free(port)]
        return problems

    def allow_more_descriptors(self) -> None:
        """Accept a few more descriptors; more than a handful are still a leak."""
        self._descriptors += 4

    @property
    def grown_bytes(self) -> int:
        return int(self.process.memory_info().rss) - self._rss_bytes

    def unexpected_processes(self) -> list[str]:
        """Processes of this Berth, except itself and the bystander's."""
        return [
            f"{process.pid} {' '.join(process.cmdline())[-120:]}"
            for process in self.berth.survivors()
            if process.pid not in self._processes and process.is_running()
        ]

    def _open_descriptors(self) -> str:
        names = [
            path.readlink() for path in Path(f"/proc/{self.berth.pid}/fd").iterdir() if path.is_symlink()
        ]
        return ", ".join(sorted(str(name) for name in names))[:1500]


def request(url: str, method: str, path: str, body: Any, timeout_s: float) -> Reply:
    """One request on its own connection."""
    with _client(url, timeout_s) as http:
        return _request(http, method, path, body)


def _client(url: str, timeout_s: float) -> httpx.Client:
    return httpx.Client(base_url=url, trust_env=False, verify=False, timeout=timeout_s)  # noqa: S501 - plain HTTP


def _request(http: httpx.Client, method: str, path: str, body: Any) -> Reply:
    reply = Reply()
    began = time.monotonic()
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with http.stream(method, path, content=content, headers=_JSON if content else None) as response:
            reply.status = response.status_code
            reply.headers = dict(response.headers)
            for piece in response.iter_raw():
                reply.first_byte_s = reply.first_byte_s or time.monotonic() - began
                reply.body += piece
    except httpx.TimeoutException as error:
        reply.broken, reply.status = f"timed out: {error!r}", 0
    except httpx.HTTPError as error:
        reply.broken = repr(error)
    reply.seconds = time.monotonic() - began
    return reply


def free_ports() -> int:
    """The first of NUM_PORTS free ports, below the ephemeral range (from 32768)."""
    while True:
        first = random.randrange(15_000, 32_000)
        if all(is_free(first + offset) for offset in range(NUM_PORTS)):
            return first


def _eventually(left: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """The last result of `left`: falsy, or what is still left after the timeout."""
    deadline = time.monotonic() + timeout_s
    while (found := left()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def eventually(what: str, is_so: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Wait, by polling, until `is_so` returns true."""
    assert not _eventually(lambda: not is_so(), timeout_s), f"it never happened: {what}"


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """A separate file system (tmpfs). Needs root; otherwise the case is skipped."""
    directory.mkdir(parents=True)
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)],
        capture_output=True,
        check=False,
    )
    if not made or made.returncode:
        raise Skipped("a small disk can only be mounted by root")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=False)  # noqa: S607


class Skipped(Exception):
    """The case can't run here; the message says why."""
