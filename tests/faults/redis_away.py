"""State in Redis, and Redis is killed, restarted, frozen, or not there: serving goes on, it is all kept."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests import fake_engine
from tests.faults.environment import NEIGHBOUR, Harbour, Skipped, eventually
from tests.faults.journal import Fate, Ledger
from tests.faults.kills import Succession
from tests.faults.scenario import Scene
from tests.instance_manager.stores.redis_process import REDIS_SERVER, RedisProcess

_AWAY_S = 4.0


def killed_and_restarted(folder: Path, ledger: Ledger, _seed: int) -> None:
    """What is started, stopped and deleted meanwhile is as it should be, before and after."""
    with _redis(folder) as redis, Harbour(folder, ledger, STATE_URL=redis.url) as harbour:
        harbour.create("stopped-meanwhile", fake_engine.command())
        harbour.create("deleted-meanwhile", fake_engine.command())
        redis.kill()
        _use_for(harbour, _AWAY_S)
        stopped = harbour.control("POST", "/instances/stopped-meanwhile/stop")
        assert stopped.status == 200, str(stopped)
        gone = harbour.control("DELETE", "/instances/deleted-meanwhile")
        assert gone.status == 204, str(gone)
        made = harbour.create("made-meanwhile", fake_engine.command())
        assert made.fate in (Fate.ANSWERED, Fate.REFUSED), str(made)
        redis.start()
        _use_for(harbour, 2)
        names = _names(harbour)
        wanted = {NEIGHBOUR, "stopped-meanwhile"} | ({"made-meanwhile"} if made.status == 201 else set())
        assert names == wanted, names
        for name in wanted - {NEIGHBOUR}:
            assert harbour.control("DELETE", f"/instances/{name}").status == 204
        with harbour.instance("one", fake_engine.command()):
            assert harbour.complete("one").fate is Fate.ANSWERED
        harbour.forget_descriptors()  # the connections to Redis are other ones
        assert not (problems := harbour.settle()), problems


def killed_again_and_again(folder: Path, ledger: Ledger, _seed: int) -> None:
    with _redis(folder) as redis, Harbour(folder, ledger, STATE_URL=redis.url) as harbour:
        for _ in range(5):
            redis.kill()
            _use_for(harbour, 0.5)
            redis.start()
            with harbour.instance("one", fake_engine.command()):
                assert harbour.complete("one").fate is Fate.ANSWERED
        _use_for(harbour, 1)
        harbour.forget_descriptors()
        assert not (problems := harbour.settle()), problems


def frozen(folder: Path, ledger: Ledger, _seed: int) -> None:
    """Redis holds its connections and answers nothing, for longer than a lease lasts, then it goes on."""
    with _redis(folder) as redis, Harbour(folder, ledger, STATE_URL=redis.url) as harbour:
        redis.freeze()
        try:
            _use_for(harbour, _AWAY_S)
            made = harbour.create("one", fake_engine.command())
            assert made.fate in (Fate.ANSWERED, Fate.REFUSED), str(made)
            assert made.seconds < 20, made.seconds
            _use_for(harbour, 8)
        finally:
            redis.thaw()
        harbour.control("DELETE", "/instances/one?force=true")
        _use_for(harbour, 1)
        with harbour.instance("one", fake_engine.command()):
            assert harbour.complete("one").fate is Fate.ANSWERED
        harbour.forget_descriptors()
        assert not (problems := harbour.settle()), problems


def slow(folder: Path, ledger: Ledger, _seed: int) -> None:
    """It answers in one of four tenths of a second."""
    with _redis(folder) as redis, Harbour(folder, ledger, STATE_URL=redis.url) as harbour:
        done = threading.Event()

        def slow_down() -> None:
            while not done.is_set():
                redis.freeze()
                time.sleep(0.3)
                redis.thaw()
                time.sleep(0.1)

        thread = threading.Thread(target=slow_down)
        thread.start()
        try:
            for _ in range(3):
                with harbour.instance("one", fake_engine.command()):
                    assert harbour.complete("one").fate is Fate.ANSWERED
                _use_for(harbour, 1)
        finally:
            done.set()
            thread.join()
        harbour.forget_descriptors()
        assert not (problems := harbour.settle()), problems


def berth_and_redis_killed_together(folder: Path, ledger: Ledger, _seed: int) -> None:
    """Redis comes back with what it had acknowledged: the next Berth has the engines again."""
    with (
        _redis(folder) as redis,
        contextlib.closing(Succession(folder / "berths", {"STATE_URL": redis.url})) as one,
    ):
        one.berth.wait_until_serving()
        made = one.create("first")
        assert made.status == 201, str(made)
        pid = one.record("first")["pid"]
        for _ in range(3):
            time.sleep(0.5)  # what is written behind is written
            redis.kill()
            one.kill()
            redis.start()
            one.begin_next()
            one.berth.wait_until_serving()
            eventually("it is taken over", lambda: one.record("first")["status"] == "running", 20)
            assert one.record("first")["pid"] == pid, "it was started anew"
            reply = one.ask("POST", "/proxy/first/v1/completions", {"max_tokens": 3})
            ledger.count(reply.fate, str(reply))
            assert reply.fate is Fate.ANSWERED, str(reply)
        one.end()


def not_there_when_berth_starts(folder: Path, ledger: Ledger, _seed: int) -> None:
    """It says so and ends, or serves without; it neither hangs nor tells a traceback."""
    with _redis(folder) as redis:
        redis.kill()
        succession = Succession(folder / "berths", {"STATE_URL": redis.url})
        try:
            try:
                succession.berth.wait_until_serving()
            except AssertionError:
                output = succession.berth.output()
                assert succession.berth.wait() != 0
                assert "Traceback" not in output, output[-2000:]
                assert "redis" in output.lower(), output[-2000:]
                return
            reply = succession.ask("GET", "/instances")
            ledger.count(reply.fate, str(reply))
            assert reply.fate is not Fate.LOST, str(reply)
            succession.end()
        finally:
            succession.close()


def _use_for(harbour: Harbour, seconds: float) -> None:
    """Requests of clients and operators go on, and none waits for Redis."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for is_stream in (False, True):
            reply = harbour.complete(NEIGHBOUR, stream=is_stream)
            assert reply.fate is Fate.ANSWERED, str(reply)
            assert reply.seconds < 3, reply.seconds
        listed = harbour.control("GET", "/instances")
        assert listed.status == 200, str(listed)
        assert listed.seconds < 3, listed.seconds
        time.sleep(0.1)


def _names(harbour: Harbour) -> set[str]:
    reply = harbour.control("GET", "/instances?all=true")
    return {one["instance_id"] for one in json.loads(reply.body)["data"]}


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[RedisProcess]:
    if REDIS_SERVER is None:
        raise Skipped("there is no redis-server")
    (folder / "redis").mkdir(parents=True)
    redis = RedisProcess(folder / "redis", keep=True)
    redis.start()
    try:
        yield redis
    finally:
        redis.kill()


SCENE = Scene(
    "redis",
    alone=(
        killed_and_restarted,
        killed_again_and_again,
        frozen,
        slow,
        berth_and_redis_killed_together,
        not_there_when_berth_starts,
    ),
)
