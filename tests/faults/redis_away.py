"""Redis as the store is killed, restarted, frozen or missing: serving continues and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests import fake_engine
from tests.faults.environment import BYSTANDER, FaultEnvironment, Skipped, eventually
from tests.faults.journal import Journal, Outcome
from tests.faults.kills import BerthSuccession
from tests.faults.scenario import Scenario
from tests.instance_manager.stores.redis_process import REDIS_SERVER, RedisProcess

_AWAY_S = 4.0


def killed_and_restarted(directory: Path, journal: Journal, _seed: int) -> None:
    """Instances started, stopped and deleted meanwhile are in the right state, before and after."""
    with _redis(directory) as redis, FaultEnvironment(directory, journal, STATE_URL=redis.url) as env:
        env.create("stopped-meanwhile", fake_engine.command())
        env.create("deleted-meanwhile", fake_engine.command())
        redis.kill()
        _send_requests_for(env, _AWAY_S)
        stopped = env.control("POST", "/instances/stopped-meanwhile/stop")
        assert stopped.status == 200, str(stopped)
        gone = env.control("DELETE", "/instances/deleted-meanwhile")
        assert gone.status == 204, str(gone)
        made = env.create("made-meanwhile", fake_engine.command())
        assert made.outcome in (Outcome.ANSWERED, Outcome.REFUSED), str(made)
        redis.start()
        _send_requests_for(env, 2)
        names = _names(env)
        wanted = {BYSTANDER, "stopped-meanwhile"} | ({"made-meanwhile"} if made.status == 201 else set())
        assert names == wanted, names
        for name in wanted - {BYSTANDER}:
            assert env.control("DELETE", f"/instances/{name}").status == 204
        with env.instance("one", fake_engine.command()):
            assert env.complete("one").outcome is Outcome.ANSWERED
        env.allow_more_descriptors()  # there are new connections to Redis
        assert not (problems := env.settle()), problems


def killed_again_and_again(directory: Path, journal: Journal, _seed: int) -> None:
    with _redis(directory) as redis, FaultEnvironment(directory, journal, STATE_URL=redis.url) as env:
        for _ in range(5):
            redis.kill()
            _send_requests_for(env, 0.5)
            redis.start()
            with env.instance("one", fake_engine.command()):
                assert env.complete("one").outcome is Outcome.ANSWERED
        _send_requests_for(env, 1)
        env.allow_more_descriptors()
        assert not (problems := env.settle()), problems


def frozen(directory: Path, journal: Journal, _seed: int) -> None:
    """Redis keeps its connections without answering for longer than a lease, then continues."""
    with _redis(directory) as redis, FaultEnvironment(directory, journal, STATE_URL=redis.url) as env:
        redis.freeze()
        try:
            _send_requests_for(env, _AWAY_S)
            made = env.create("one", fake_engine.command())
            assert made.outcome in (Outcome.ANSWERED, Outcome.REFUSED), str(made)
            assert made.seconds < 20, made.seconds
            _send_requests_for(env, 8)
        finally:
            redis.thaw()
        env.control("DELETE", "/instances/one?force=true")
        _send_requests_for(env, 1)
        with env.instance("one", fake_engine.command()):
            assert env.complete("one").outcome is Outcome.ANSWERED
        env.allow_more_descriptors()
        assert not (problems := env.settle()), problems


def is_slow(directory: Path, journal: Journal, _seed: int) -> None:
    """Redis is frozen for 0.3 s of every 0.4 s."""
    with _redis(directory) as redis, FaultEnvironment(directory, journal, STATE_URL=redis.url) as env:
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
                with env.instance("one", fake_engine.command()):
                    assert env.complete("one").outcome is Outcome.ANSWERED
                _send_requests_for(env, 1)
        finally:
            done.set()
            thread.join()
        env.allow_more_descriptors()
        assert not (problems := env.settle()), problems


def berth_and_redis_killed_together(directory: Path, journal: Journal, _seed: int) -> None:
    """Redis returns with all that it acknowledged: the next Berth process adopts the engines."""
    with (
        _redis(directory) as redis,
        contextlib.closing(BerthSuccession(directory / "berths", {"STATE_URL": redis.url})) as succession,
    ):
        succession.berth.wait_until_serving()
        made = succession.create("first")
        assert made.status == 201, str(made)
        pid = succession.record("first")["pid"]
        for _ in range(3):
            time.sleep(0.5)  # until pending writes are done
            redis.kill()
            succession.kill()
            redis.start()
            succession.begin_next()
            succession.berth.wait_until_serving()
            eventually("it is adopted", lambda: succession.record("first")["status"] == "running", 20)
            assert succession.record("first")["pid"] == pid, "it was started again"
            reply = succession.ask("POST", "/proxy/first/v1/completions", {"max_tokens": 3})
            journal.count(reply.outcome, str(reply))
            assert reply.outcome is Outcome.ANSWERED, str(reply)
        succession.end()


def not_there_when_berth_starts(directory: Path, journal: Journal, _seed: int) -> None:
    """Berth exits with a message, or serves without Redis; it neither hangs nor prints a traceback."""
    with _redis(directory) as redis:
        redis.kill()
        succession = BerthSuccession(directory / "berths", {"STATE_URL": redis.url})
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
            journal.count(reply.outcome, str(reply))
            assert reply.outcome is not Outcome.LOST, str(reply)
            succession.end()
        finally:
            succession.close()


def _send_requests_for(env: FaultEnvironment, seconds: float) -> None:
    """Send clients' and operators' requests; none may wait for Redis."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for is_stream in (False, True):
            reply = env.complete(BYSTANDER, stream=is_stream)
            assert reply.outcome is Outcome.ANSWERED, str(reply)
            assert reply.seconds < 3, reply.seconds
        listed = env.control("GET", "/instances")
        assert listed.status == 200, str(listed)
        assert listed.seconds < 3, listed.seconds
        time.sleep(0.1)


def _names(env: FaultEnvironment) -> set[str]:
    reply = env.control("GET", "/instances?all=true")
    return {record["instance_id"] for record in json.loads(reply.body)["data"]}


@contextlib.contextmanager
def _redis(directory: Path) -> Iterator[RedisProcess]:
    if REDIS_SERVER is None:
        raise Skipped("there is no redis-server")
    (directory / "redis").mkdir(parents=True)
    redis = RedisProcess(directory / "redis", keep=True)
    redis.start()
    try:
        yield redis
    finally:
        redis.kill()


SCENARIO = Scenario(
    "redis",
    isolated=(
        killed_and_restarted,
        killed_again_and_again,
        frozen,
        is_slow,
        berth_and_redis_killed_together,
        not_there_when_berth_starts,
    ),
)
