"""What to do with an instance of an earlier process: the decision, and the record behind it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from instance_manager.config import ManagerConfig
from instance_manager.events import EventLog
from instance_manager.lifecycle.instance import SHARED_FIELDS
from instance_manager.lifecycle.instance_record import instance_of
from instance_manager.lifecycle.instance_view import InstanceView
from instance_manager.lifecycle.last_use import LAST_USE_PRECISION_S
from instance_manager.state.recovery import RecoveryAction, decide
from instance_manager.state.stores.records import UNREADABLE, InstanceRecord
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
    again = one.stored("berth", None, is_wanted=True)
    extra = dict(again.extra)
    assert extra.pop("last_active_precision_s") == LAST_USE_PRECISION_S
    assert replace(again, extra=extra, updated_at=0.0, last_active=0.0, params={}) == replace(
        RECORD, params={}
    )


@pytest.mark.parametrize("state", InstanceState)
async def test_an_ended_instance_keeps_the_time_of_its_last_use(state: InstanceState) -> None:
    an_hour_ago = time.time() - 3600
    record = replace(RECORD, state=state, last_active=an_hour_ago)
    one = instance_of(record, ManagerConfig(), EventLog(), time.monotonic)
    expected = an_hour_ago if state in ENDED else time.time()
    assert one.record()["last_active"] == pytest.approx(expected, abs=60)
    again = one.stored("berth", None, is_wanted=True)
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


# As a Berth wrote them before a spec's fields were inherited and the checks of types derived.
STORED = (
    '{"instance_id":"one","state":"failed","owner":"berth","spec":{"model_name":"org/model","engine":"vllm",'
    '"params":{"dtype":"auto","hf_token":"secret"},"timeout_s":5.0,"name":"one","env":{"A":"b"},'
    '"devices":["0","1"],"command":null,"health_path":"/h","profile":"chat","pinned":true,'
    '"concurrency_limit":3,"expire_action":"sleep1"},"model_name":"org/model","served_model_name":"chat",'
    '"params":{"dtype":"auto","hf_token":"secret","max_model_len":8},'
    '"command":["vllm","serve","--port","9000"],"host":"127.0.0.1","port":9000,"pid":77,'
    '"pid_start_ticks":5,"boot_id":"boot","token":"berth.token","api_key":"key","generation":3,'
    '"log_path":"/logs/one.log","status_reason":"exited","failure":{"class":"crashed","message":"m",'
    '"exit_code":3,"signal":null,"log_tail":["a"]},"timeout_s":7.0,"pinned":true,"sleep_level":1,'
    '"memory_bytes":4096,"created_at":1.0,"started_at":2.0,"ready_at":4.5,"last_active":6.0,'
    '"updated_at":8.0,"extra":{"is_wanted":true,"log_start":12,"names":["chat","alias"],"runner":null},'
    '"version":4}'
)
SHOWN = (
    '{"instance_id": "one", "model_name": "org/model", "served_model_name": "chat", "engine": "vllm", '
    '"engine_reason": null, "status": "failed", "status_reason": "exited", "sleep_level": 1, '
    '"profile": "chat", "pinned": true, '
    '"host": "127.0.0.1", "port": 9000, "pid": 77, "pid_start_time": null, '
    '"params": {"dtype": "auto", "hf_token": "***", "max_model_len": 8}, '
    '"command": ["vllm", "serve", "--port", "9000"], "container": null, "timeout": 7.0, "expires_at": null, '
    '"last_active": null, "in_flight": null, "devices": ["0", "1"], "memory_bytes": 4096, '
    '"created_at": 1.0, "ready_at": 4.5, "load_phase": null, "load_progress": null, '
    '"load_seconds": 2.5, "restarts": 2, '
    '"log_path": "/logs/one.log", "error": {"class": "crashed", "message": "m", "exit_code": 3, '
    '"signal": null, "log_tail": ["a"]}, "owner": "berth", "owner_is_alive": false}'
)


def test_a_stored_record_and_its_json_are_the_same_in_every_version() -> None:
    record = InstanceRecord.from_json(STORED)
    assert json.loads(record.to_json()) == json.loads(STORED)
    assert json.dumps(InstanceView(record, owner_is_alive=False).to_json()) == SHOWN


async def test_one_view_shows_local_and_remote_instances() -> None:
    one = instance_of(InstanceRecord.from_json(STORED), ManagerConfig(), EventLog(), lambda: 100.0)
    local, remote = one.record(), json.loads(SHOWN)
    of_process = {"served_model_name": None, "params": None, "host": None, "port": None, "pid": None}
    live = {"last_active": None, "in_flight": None, "memory_bytes": None, "sleep_level": None}
    without = of_process | live | {"owner": None, "owner_is_alive": None}
    assert list(local) == [name for name in remote if name not in ("owner", "owner_is_alive")]
    assert {**local, **without} == {**remote, **without}


@pytest.mark.parametrize("name", SHARED_FIELDS)
async def test_every_shared_field_of_a_record_is_the_instance_s(name: str) -> None:
    """So a field added to both is stored, restored and checked without another line."""
    one = instance_of(RECORD, ManagerConfig(), EventLog(), lambda: 100.0)
    assert getattr(one.stored("berth", None, is_wanted=True), name) == getattr(one, name)


@pytest.mark.parametrize(
    ("old", "damaged"),
    [
        ('"port":9000', '"port":"9000"'),
        ('"pinned":true,"sleep', '"pinned":1,"sleep'),
        ('"generation":3', '"generation":true'),
        ('"created_at":1.0', '"created_at":"then"'),
        ('"command":["vllm","serve","--port","9000"]', '"command":"vllm"'),
        ('"extra":{', '"extra":[{'),
        ('"concurrency_limit":3', '"concurrency_limit":"3"'),
        ('"env":{"A":"b"}', '"env":["A"]'),
        ('"state":"failed"', '"state":"of the future"'),
        ('"state":"failed"', '"state":null'),
        ('"engine":"vllm"', '"engine":null'),
        ('"last_active":6.0', '"last_active":NaN'),
    ],
)
def test_a_field_of_another_type_makes_a_record_unreadable(old: str, damaged: str) -> None:
    assert STORED.count(old) == 1
    with pytest.raises(UNREADABLE):
        InstanceRecord.from_json(STORED.replace(old, damaged))


async def test_a_container_that_could_not_be_started_again_is_still_ended_as_one() -> None:
    spec = InstanceSpec("m", "of the future", runtime="podman", image="an/image", run_args=("--memory", "1g"))
    record = InstanceRecord.from_json(replace(RECORD, spec=spec).to_json())
    assert record.spec == spec
    one = instance_of(record, ManagerConfig(), EventLog(), lambda: 0.0)
    assert one.plan.container is not None and one.plan.container.runtime == "podman"


REQUIRED = {"instance_id", "state", "owner", "spec"}


@pytest.mark.parametrize("name", sorted(json.loads(STORED).keys() - REQUIRED))
async def test_a_field_without_a_value_is_as_if_it_were_missing(name: str) -> None:
    """One such record must neither keep Berth from starting nor fail later."""
    without = {key: value for key, value in json.loads(STORED).items() if key != name}
    missing = InstanceRecord.from_json(json.dumps(without))
    null = InstanceRecord.from_json(json.dumps({**without, name: None}))
    assert null.to_json() == missing.to_json() or getattr(null, name) is None
    one = instance_of(null, ManagerConfig(), EventLog(), lambda: 100.0)
    assert json.loads(one.stored("berth", None, is_wanted=True).to_json()).keys() == json.loads(STORED).keys()
    assert sorted([null, missing], key=lambda record: record.created_at)


@pytest.mark.parametrize(
    ("old", "damaged"),
    [
        ('"log_start":12', '"log_start":null'),
        ('"log_start":12', '"log_start":"12"'),
        ('"log_start":12', '"log_start":-1'),
        ('"log_start":12', '"log_start":NaN'),
        ('"log_start":12', '"log_start":0,"last_active_precision_s":NaN'),
        ('"log_start":12', '"log_start":0,"last_active_precision_s":true'),
        ('"class":"crashed"', '"class":["crashed"]'),
        ('"log_tail":["a"]', '"log_tail":5'),
        ('"command":["vllm","serve","--port","9000"]', '"command":[1]'),
    ],
)
async def test_what_a_record_says_besides_never_prevents_its_recovery(old: str, damaged: str) -> None:
    assert STORED.count(old) == 1
    stored = STORED.replace('"state":"failed"', '"state":"running"').replace(old, damaged)
    record = InstanceRecord.from_json(stored)
    one = instance_of(record, ManagerConfig(), EventLog(), lambda: 100.0)
    assert one.log_start in (0, 12)
    assert one.gate.last_active == 100.0
    assert one.record()["error"]["message"] == "m"
