"""What to do with an instance of an earlier process: the decision, and the record behind it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from instance_manager.config import ManagerConfig
from instance_manager.events import EventLog
from instance_manager.lifecycle.instance_record import instance_of, record_of
from instance_manager.state.recovery import RecoveryAction, decide
from instance_manager.state.stores.records import InstanceRecord
from instance_manager.types import FailureClass, InstanceSpec, InstanceState, RunSecrets

ENDED = (InstanceState.STOPPED, InstanceState.FAILED)
RECORD = InstanceRecord(
    "one",
    InstanceState.RUNNING,
    "berth",
    InstanceSpec("fake", "command", command=("x", "{port}"), timeout_s=5.0, name="one"),
    model_name="fake",
    served_model_name="fake",
    command=("x", "9000"),
    port=9000,
    token="berth.token",
    api_key="key",
    generation=3,
    log_path="one.log",
    status_reason="healthy",
    timeout_s=7.0,
    pinned=True,
    sleep_level=1,
    created_at=1.0,
    started_at=2.0,
    ready_at=4.0,
    extra={"is_wanted": True, "log_start": 12, "names": ["fake"], "runner": None},
)


@pytest.mark.parametrize("state", InstanceState)
@pytest.mark.parametrize("is_wanted", [True, False])
@pytest.mark.parametrize(("has_status", "is_certain"), [(False, False), (True, False), (True, True)])
def test_each_instance_gets_one_action(
    state: InstanceState, is_wanted: bool, has_status: bool, is_certain: bool
) -> None:
    record = replace(RECORD, state=state, extra={"is_wanted": is_wanted})
    action = decide(record, has_status=has_status, is_certain=is_certain)
    if state in ENDED:
        assert action is (RecoveryAction.START if is_wanted else RecoveryAction.LEAVE)
    elif is_certain:
        assert action is RecoveryAction.ADOPT
    elif state is InstanceState.STARTING and not has_status:
        assert action is RecoveryAction.START  # the earlier process died before it could start it
    else:
        assert action is RecoveryAction.CLEAN_UP


def test_an_engine_whose_port_is_unknown_is_not_adopted() -> None:
    assert decide(replace(RECORD, port=None), has_status=True, is_certain=True) is RecoveryAction.CLEAN_UP


async def test_an_instance_comes_back_as_it_was_stored() -> None:
    one = instance_of(RECORD, ManagerConfig(), EventLog(), lambda: 100.0)
    assert one.secrets == RunSecrets("berth.token", "key")
    assert (one.pid, one.port, one.log_path, one.log_start) == (None, None, Path("one.log"), 12)
    one.port = RECORD.port
    again = record_of(one, "berth", None, is_wanted=True)
    assert replace(again, updated_at=0.0, last_active=0.0, params={}) == replace(RECORD, params={})
    assert one.gate.last_active == 100.0  # idleness starts anew


@pytest.mark.parametrize("state", InstanceState)
async def test_an_ended_instance_keeps_the_time_of_its_last_use(state: InstanceState) -> None:
    an_hour_ago = time.time() - 3600
    record = replace(RECORD, state=state, last_active=an_hour_ago)
    one = instance_of(record, ManagerConfig(), EventLog(), time.monotonic)
    expected = an_hour_ago if state in ENDED else time.time()
    assert one.record()["last_active"] == pytest.approx(expected, abs=60)
    again = record_of(one, "berth", None, is_wanted=True)
    assert again.last_active == pytest.approx(expected, abs=60)


async def test_a_record_of_an_earlier_version_lacks_the_time_of_its_last_use() -> None:
    record = replace(RECORD, state=InstanceState.STOPPED, last_active=0.0)
    assert instance_of(record, ManagerConfig(), EventLog(), lambda: 100.0).gate.last_active == 100.0


async def test_a_failure_of_an_unknown_class_is_a_crash() -> None:
    failure = {"class": "of the future", "message": "m", "exit_code": 3, "signal": None, "log_tail": ["a"]}
    record = replace(RECORD, state=InstanceState.FAILED, failure=failure)
    one = instance_of(record, ManagerConfig(), EventLog(), lambda: 0.0)
    assert one.failure is not None
    assert (one.failure.failure_class, one.failure.log_tail) == (FailureClass.CRASHED, ("a",))
