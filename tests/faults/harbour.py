"""A Berth under fire: beside each case another engine goes on serving; afterwards all is as it was before."""

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
from tests.faults.ledger import Fate, Ledger, Reply

NEIGHBOUR = "neighbour"
NUM_PORTS = 5
PATIENCE_S = 30.0
_MIB = 1 << 20
_JSON = {"Content-Type": "application/json"}
_RSS_SLACK_BYTES = 80 * _MIB  # what the allocator keeps of 60 clients with a megabyte each, and late modules
_NEIGHBOUR_PAUSE_S = 0.05
_NEIGHBOUR_SLOWEST_S = 5.0  # on a machine that others use too
FAULT_IN_LOG = re.compile(
    r"^.*(?:Traceback|never retrieved|the scaler failed|Error in Berth|an error in Berth|never awaited).*$",
    re.MULTILINE,
)


class Harbour:
    """A Berth, its neighbour and what there was before the first case."""

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        engine_env: Mapping[str, str] | None = None,
        **settings: str,
    ) -> None:
        self._engine_env = dict(engine_env or {})
        self.folder = folder
        self.ledger = ledger
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "models.yaml").write_text('{"models": {}}')
        defaults = {
            "STATE_DIR": str(folder / "state"),
            "MODELS_FILE": str(folder / "models.yaml"),
            "MODEL_DIRS": str(folder / "no-models"),
            "VLLM_BASE_PORT": str(free_ports()),
            "STOP_GRACE": "1",
            "DRAIN_TIMEOUT": "2",
            "HEALTH_INTERVAL": "0.5",
        }
        settings = {**defaults, **settings}
        self.berth = BerthProcess(folder, **settings)
        self.berth.base_port = int(settings["VLLM_BASE_PORT"])
        self.process = psutil.Process(self.berth.pid)
        self.slowest_s = 0.0  # of the neighbour's answers, since the last case
        self.most_rss_bytes = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Harbour:
        try:
            self.berth.wait_until_serving()
            made = self.create(NEIGHBOUR, fake_engine.command())
            assert made.status == 201, f"{made}\n{self.tail_of_log()}"
            with self.instance("warm-up", fake_engine.command()):  # what is loaded late is loaded now
                assert self.complete("warm-up").fate is Fate.ANSWERED
                assert self.complete("warm-up", stream=True).is_done
            self.start_neighbour()
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
            self.stop_neighbour()
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

    # What a case does

    @contextmanager
    def instance(
        self, name: str, command: list[str], *, wait_s: float = PATIENCE_S, **fields: Any
    ) -> Iterator[str]:
        """An engine that is there for a case; at its end it is deleted, whatever has become of it."""
        self.create(name, command, wait_s=wait_s, **fields)
        try:
            yield name
        finally:
            gone = self.control("DELETE", f"/instances/{name}?force=true")
            assert gone.status in (200, 204), f"it can't be deleted: {gone}"

    def create(self, name: str, command: list[str], *, wait_s: float = PATIENCE_S, **fields: Any) -> Reply:
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

    def until(
        self, name: str, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = PATIENCE_S
    ) -> dict[str, Any]:
        """The record, once it is as wanted."""
        deadline = time.monotonic() + timeout_s
        while not wanted(record := self.record(name)):
            assert time.monotonic() < deadline, f"it never came to that: {json.dumps(record)[:1500]}"
            time.sleep(0.05)
        return record

    def until_status(self, name: str, *statuses: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        return self.until(name, lambda record: record["status"] in statuses, timeout_s)

    def complete(
        self, name: str, *, stream: bool = False, timeout_s: float = PATIENCE_S, **fields: Any
    ) -> Reply:
        """A completion by an instance; counted, and lost if it is neither answered nor clearly refused."""
        body = {"model": name, "prompt": "x", "max_tokens": 4, "stream": stream, **fields}
        return self.ask("POST", f"/proxy/{name}/v1/completions", body, timeout_s=timeout_s)

    def asking(self, name: str, number: int, **fields: Any) -> Callable[[], list[Reply]]:
        """So many clients ask for a completion at once, from now on; call it for what they got."""
        pool = ThreadPoolExecutor(number)
        asked = [pool.submit(self.complete, name, **fields) for _ in range(number)]

        def replies() -> list[Reply]:
            with pool:
                return [one.result() for one in asked]

        return replies

    def ask(self, method: str, path: str, body: Any = None, *, timeout_s: float = PATIENCE_S) -> Reply:
        """A request of a client; counted, by what becomes of it."""
        reply = request(self.berth.url, method, path, body, timeout_s)
        self.ledger.count(reply.fate, f"{method} {path}: {reply}")
        return reply

    def control(self, method: str, path: str, body: Any = None, *, timeout_s: float = 60.0) -> Reply:
        """A request of an operator; counted like any other."""
        return self.ask(method, path, body, timeout_s=timeout_s)

    def connect(self, timeout_s: float = PATIENCE_S) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.berth.port), timeout_s)

    # What there is to be seen

    def engine(self, name: str) -> psutil.Process:
        """The engine's own process."""
        return psutil.Process(self.record(name)["pid"])

    def tail_of_log(self, size: int = 3000) -> str:
        return self.berth.output()[-size:]

    @contextmanager
    def memory_bounded(self, mib: float) -> Iterator[None]:
        """Berth's own memory, sampled all the time, never grows by more."""
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

    # The neighbour

    def start_neighbour(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._serve_neighbour, name="neighbour")
        self._thread.start()

    def stop_neighbour(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _serve_neighbour(self) -> None:
        """One client that goes on asking, each fourth time for a stream: whatever happens, it is served."""
        number = 0
        with _client(self.berth.url, PATIENCE_S) as http:
            while not self._stop.wait(_NEIGHBOUR_PAUSE_S):
                number += 1
                body = {"prompt": "x", "max_tokens": 5, "stream": number % 4 == 0}
                reply = _request(http, "POST", f"/proxy/{NEIGHBOUR}/v1/completions", body)
                is_right = reply.status == 200 and b"token4" in reply.body and not reply.broken
                is_right = is_right and (reply.is_done or not body["stream"])
                self.ledger.count(
                    Fate.ANSWERED if is_right else Fate.LOST, f"the neighbour's request: {reply}"
                )
                self.slowest_s = max(self.slowest_s, reply.seconds)

    # Afterwards

    def settle(self) -> list[str]:
        """What is not as it was before, once it has had time to become so."""
        problems = []
        if left := _eventually(self.strangers):
            problems.append(f"processes left: {left}")
        if excess := _eventually(lambda: max(0, self.process.num_fds() - self._descriptors)):
            problems.append(f"{excess} descriptors leaked of {self._descriptors}: {self._open_descriptors()}")
        grown = self.process.memory_info().rss - self._rss_bytes
        if grown > _RSS_SLACK_BYTES:
            problems.append(f"Berth's memory has grown by {grown / _MIB:.0f} MiB")
        if self.slowest_s > _NEIGHBOUR_SLOWEST_S:
            problems.append(f"another instance's client waited {self.slowest_s:.1f} s")
        self.slowest_s = 0.0
        records = json.loads(request(self.berth.url, "GET", "/instances?all=true", None, PATIENCE_S).body)[
            "data"
        ]
        if [one["instance_id"] for one in records] != [NEIGHBOUR]:
            problems.append(f"instances left: {[one['instance_id'] for one in records]}")
        busy = [one for one in records if one["in_flight"] > 1]
        if busy:
            problems.append(f"leases left: {busy[0]['in_flight']}")
        taken = range(self.berth.base_port, self.berth.base_port + NUM_PORTS)
        used = {one["port"] for one in records}
        problems += [f"port {port} is not free" for port in taken if port not in used and not is_free(port)]
        return problems

    def forget_descriptors(self) -> None:
        """A few more or fewer are right now; more than a handful are still a leak."""
        self._descriptors += 4

    @property
    def grown_bytes(self) -> int:
        return int(self.process.memory_info().rss) - self._rss_bytes

    def strangers(self) -> list[str]:
        """Processes of this Berth, other than itself and those of the neighbour."""
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
    """One request on a connection of its own."""
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
        reply.broken, reply.status = f"nothing more came: {error!r}", 0
    except httpx.HTTPError as error:
        reply.broken = repr(error)
    reply.seconds = time.monotonic() - began
    return reply


def free_ports() -> int:
    """The first of some that are free, below those that the system gives to clients (from 32768 on)."""
    while True:
        first = random.randrange(15_000, 32_000)
        if all(is_free(first + offset) for offset in range(NUM_PORTS)):
            return first


def _eventually(left: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """What is left when nothing is, or when the time is out."""
    deadline = time.monotonic() + timeout_s
    while (found := left()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def eventually(what: str, is_so: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Wait for what nothing announces."""
    assert not _eventually(lambda: not is_so(), timeout_s), f"never so: {what}"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own (tmpfs): it takes root, and the case is skipped without."""
    folder.mkdir(parents=True)
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not made or made.returncode:
        raise Skipped("a small disk can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)  # noqa: S607


class Skipped(Exception):
    """The case can't be run here; the message says why."""
