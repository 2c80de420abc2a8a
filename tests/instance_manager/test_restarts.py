"""Restarts after failures: one policy for instances created by hand and for models of the catalog."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from instance_manager.config import RestartPolicy, RestartRules
from instance_manager.errors import InstanceFailedToStart
from instance_manager.fleet import load_monitor
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.models import Model
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.restart_backoff import RestartBackoff
from instance_manager.manager import InstanceManager
from instance_manager.types import Event, InstanceState
from tests.instance_manager.conftest import ManagerFactory, fake, until_state
from tests.instance_manager.test_fleet import bring_up, fleet_of, profile

pytestmark = pytest.mark.timeout(120)

NEVER = RestartRules(RestartPolicy.NEVER, initial_backoff_s=0.2)
QUICK = RestartRules(RestartPolicy.ON_FAILURE, limit=2, initial_backoff_s=0.2)
SLOW = RestartRules(RestartPolicy.ON_FAILURE, initial_backoff_s=30.0)
KINDS = pytest.mark.parametrize("kind", ["by hand", "catalog"])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# The rule


def failing(backoff: RestartBackoff, clock: Clock, now: float, *, was_ready: bool = True) -> float | None:
    clock.now = now
    return backoff.record_failure(was_ready=was_ready)


def test_the_delay_doubles_with_each_failure_of_the_window_up_to_the_limit() -> None:
    rules = RestartRules(
        RestartPolicy.ON_FAILURE, limit=4, window_s=100, initial_backoff_s=1, max_backoff_s=3
    )
    backoff = RestartBackoff(rules, clock := Clock())
    assert [failing(backoff, clock, now) for now in range(5)] == [1, 2, 3, 3, None]
    assert failing(backoff, clock, 102.5) == 3.0, "two failures are left in the window"
    backoff.reset()
    assert failing(backoff, clock, 103) == 1.0


def test_a_failed_start_counts_like_a_crash_only_while_restarts_are_in_progress() -> None:
    backoff = RestartBackoff(QUICK, clock := Clock())
    assert failing(backoff, clock, 0, was_ready=False) is None
    assert failing(backoff, clock, 1) == 0.4
    assert failing(backoff, clock, 2, was_ready=False) is None, "that is one more than the limit"
    backoff.reset()
    assert failing(backoff, clock, 3) == 0.2
    assert failing(backoff, clock, 4, was_ready=False) == 0.4
    backoff.reset()
    assert failing(backoff, clock, 5) == 0.2
    backoff.record_start()
    assert failing(backoff, clock, 6, was_ready=False) is None


def test_the_first_crash_delays_no_start_for_a_request_and_every_other_failure_does() -> None:
    backoff = RestartBackoff(SLOW, clock := Clock())
    failing(backoff, clock, 1000.0)
    assert (backoff.wait_s, backoff.restart_at) == (0.0, 1030.0)
    failing(backoff, clock, 1001.0)
    assert (backoff.wait_s, backoff.restart_at) == (60.0, 1061.0)
    backoff.reset()
    assert (backoff.wait_s, backoff.restart_at) == (0.0, None)
    failing(backoff, clock, 1002.0, was_ready=False)
    assert (backoff.wait_s, backoff.restart_at) == (30.0, None)


def test_with_never_nothing_is_restarted_but_requests_still_wait() -> None:
    backoff = RestartBackoff(NEVER, clock := Clock())
    assert [failing(backoff, clock, 0.0), failing(backoff, clock, 1.0)] == [None, None]
    assert (backoff.retry_at, backoff.restart_at, backoff.may_start_unasked) == (1.4, None, False)
    clock.now = 2.0
    assert backoff.wait_s == 0 and not backoff.may_start_unasked
    backoff.record_start()
    assert backoff.may_start_unasked


# Both kinds, with real processes


@asynccontextmanager
async def one_running(
    managing: ManagerFactory, tmp_path: Path, kind: str, rules: RestartRules, *flags: str
) -> AsyncIterator[tuple[InstanceManager, Fleet, Model, Instance, list[Event]]]:
    """An instance of model `one`, created by hand or by the fleet from its profile; and its events."""
    models = [profile("one", *flags, devices=())] if kind == "catalog" else []
    events: list[Event] = []
    async with managing(restart=rules) as manager, fleet_of(manager, tmp_path, *models) as fleet:
        manager.events.add_listener(events.append)
        if kind == "catalog":
            fleet.request_start(fleet.find("one"))
            while not manager.list():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
            (instance,) = manager.list()
        else:
            instance = manager.create(replace(fake(*flags), model_name="one"))
        async with asyncio.timeout(60):
            await until_state(instance, InstanceState.RUNNING)
        yield manager, fleet, fleet.find("one"), instance, events


async def killed(instance: Instance) -> None:
    assert instance.pid is not None
    os.kill(instance.pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        await until_state(instance, InstanceState.FAILED)


def delays(events: list[Event]) -> list[float]:
    """Seconds from each failure to the start after it."""
    states = [event for event in events if event.type == "instance.state"]
    return [b.time - a.time for a, b in pairwise(states) if a.data["status"] == InstanceState.FAILED]


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_true():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)


@KINDS
async def test_on_failure_it_is_restarted_after_growing_delays_up_to_the_limit(
    managing: ManagerFactory, tmp_path: Path, kind: str
) -> None:
    async with one_running(managing, tmp_path, kind, QUICK, "--die-after", "0.1") as parts:
        _, _, model, instance, events = parts
        await until(lambda: [e.data.get("status") for e in events].count("failed") == 3)
        await asyncio.sleep(1.0)  # longer than any delay
        assert instance.generation == 3 and instance.state is InstanceState.FAILED
        first, second = delays(events)
        assert 0.2 <= first < 0.39 and 0.4 <= second < 0.8
        assert model.status == "failed"


@KINDS
async def test_with_never_it_stays_failed_until_a_request_or_a_client_starts_it(
    managing: ManagerFactory, tmp_path: Path, kind: str
) -> None:
    async with one_running(managing, tmp_path, kind, NEVER) as (manager, fleet, _, instance, _):
        await killed(instance)
        await asyncio.sleep(0.6)
        assert instance.state is InstanceState.FAILED and instance.generation == 1
        await bring_up(fleet, "one")
        assert instance.generation == 2
        await killed(instance)
        manager.start(instance.instance_id)
        await until_state(instance, InstanceState.RUNNING)


@KINDS
async def test_a_request_in_the_back_off_gets_the_failure_at_once_except_after_the_first(
    managing: ManagerFactory, tmp_path: Path, kind: str
) -> None:
    async with one_running(managing, tmp_path, kind, SLOW) as (_, fleet, model, instance, _):
        await killed(instance)
        await bring_up(fleet, "one")
        await killed(instance)
        with pytest.raises(InstanceFailedToStart, match="the next start is tried in 60 s") as refused:
            await fleet.wait_for_lease(model)
        assert refused.value.retry_after_s is not None and 50 < refused.value.retry_after_s <= 60
        model.reset_backoff()  # as POST /models/one/start does
        fleet.request_start(model)
        await until_state(instance, InstanceState.RUNNING)
        assert model.error is None and model.status == "running"


def test_the_fleet_restarts_models_of_the_catalog_only() -> None:
    by_hand, named = (Model("m", entry, 5, Clock(), restart=QUICK) for entry in (None, profile("m")))
    for model in (by_hand, named):
        model.backoff.record_failure(was_ready=True)
        model.record_failure(InstanceFailedToStart("it failed to start again"))
    assert (by_hand.backoff.restart_at, named.backoff.restart_at) == (None, 0.4)


@KINDS
@pytest.mark.parametrize("how", ["stop", "start", "delete"])
async def test_a_client_ends_the_back_off_and_no_restart_follows(
    managing: ManagerFactory, tmp_path: Path, kind: str, how: str
) -> None:
    async with one_running(managing, tmp_path, kind, QUICK) as (manager, _, model, instance, _):
        await killed(instance)
        if how == "start":
            manager.start(instance.instance_id)
            await until_state(instance, InstanceState.RUNNING)
        else:
            await (manager.stop if how == "stop" else manager.delete)(instance.instance_id)
        await asyncio.sleep(0.6)  # longer than the delay
        assert [one.generation for one in manager.list()] == ([2] if how == "start" else [])
        assert model.status == ("running" if how == "start" else "stopped")


@pytest.mark.parametrize(("rules", "is_replaced"), [(NEVER, False), (QUICK, True)])
async def test_min_replicas_follows_the_policy_too(
    managing: ManagerFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rules: RestartRules,
    is_replaced: bool,
) -> None:
    """With `never`, a replica that failed isn't replaced; else it is, and beyond the limit as well."""
    monkeypatch.setattr(load_monitor, "_SAMPLE_INTERVAL_S", 0.05)
    kept = replace(profile("one", "--die-after", "0.1", devices=()), min_replicas=1)
    async with managing(restart=rules) as manager, fleet_of(manager, tmp_path, kept):
        await until(lambda: bool(manager.list(include_terminal=True)))
        (instance,) = manager.list(include_terminal=True)
        if is_replaced:
            await until(lambda: instance.generation >= 4)
        else:
            await until_state(instance, InstanceState.FAILED)
            await asyncio.sleep(1.0)
            assert instance.generation == 1
