"""Memory peaks: what counts, and what survives a restart. Real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instance_manager.memory.measurements import Footprint, MeasuredKind, Measurements, params_fingerprint

KIND = MeasuredKind("org/model", "engine", "abc")


def test_a_kind_that_was_never_measured_has_no_peak(tmp_path: Path) -> None:
    measurements = Measurements(tmp_path)
    assert measurements.peak(KIND) is None
    measurements.record(KIND, "run-1", 0, Footprint(10, 20))
    assert measurements.peak(KIND) == Footprint(10, 20)
    assert measurements.peak(KIND, level=1) is None
    assert measurements.peak(MeasuredKind("org/other", "engine", "abc")) is None


def test_the_peak_of_a_run_counts_on_each_kind_of_device(tmp_path: Path) -> None:
    measurements = Measurements(tmp_path)
    for held in (Footprint(10, 20), Footprint(30, 5), Footprint(1, 1)):
        measurements.record(KIND, "run-1", 0, held)
    measurements.record(KIND, "run-1", 1, Footprint(2, 3))
    assert measurements.peak(KIND) == Footprint(30, 20)
    assert measurements.peak(KIND, level=1) == Footprint(2, 3)


def test_a_new_run_does_not_hide_the_last_ones_peak_and_old_runs_are_dropped(
    tmp_path: Path,
) -> None:
    measurements = Measurements(tmp_path)
    for number, host_bytes in enumerate((50, 40, *[1] * 15)):
        measurements.record(KIND, f"run-{number}", 0, Footprint(host_bytes))
    assert measurements.peak(KIND) == Footprint(40)


def test_it_survives_a_restart(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    measurements = Measurements(directory)
    measurements.record(KIND, "run-1", 0, Footprint(10, 20))
    measurements.record(KIND, "run-1", 2, Footprint(1, 2))
    measurements.save()
    assert [path.name for path in directory.iterdir()] == ["memory.json"]
    again = Measurements(directory)
    assert (again.peak(KIND), again.peak(KIND, level=2)) == (Footprint(10, 20), Footprint(1, 2))


def test_it_writes_only_changes(tmp_path: Path) -> None:
    measurements = Measurements(tmp_path)
    measurements.save()
    assert not list(tmp_path.iterdir())
    measurements.record(KIND, "run-1", 0, Footprint(10))
    measurements.save()
    (tmp_path / "memory.json").unlink()
    measurements.record(KIND, "run-1", 0, Footprint(9))
    measurements.save()
    assert not list(tmp_path.iterdir())
    measurements.record(KIND, "run-1", 0, Footprint(11))
    measurements.save()
    assert Measurements(tmp_path).peak(KIND) == Footprint(11)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format": 0, "peaks": {}}', '{"format": 1}', '{"format": 1, "peaks": {"a": {"b": 3}}}'],
)
def test_an_unreadable_file_is_logged_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / "memory.json").write_text(text)
    measurements = Measurements(tmp_path)
    assert "estimated until it is measured again" in caplog.text
    measurements.record(KIND, "run-1", 0, Footprint(10))
    measurements.save()
    assert Measurements(tmp_path).peak(KIND) == Footprint(10)


def test_the_number_of_models_kept_is_bounded(tmp_path: Path) -> None:
    measurements = Measurements(tmp_path)
    kinds = [MeasuredKind(f"model-{i}", "engine", "abc") for i in range(600)]
    for kind in [*kinds, kinds[0]]:
        measurements.record(kind, "run-1", 0, Footprint(1))
    measurements.save()
    assert len(json.loads((tmp_path / "memory.json").read_text())["peaks"]) == 500
    again = Measurements(tmp_path)
    assert again.peak(kinds[0]) is not None  # measured again last
    assert again.peak(kinds[1]) is None


def test_a_fingerprint_depends_on_parameters_but_not_on_their_order() -> None:
    ours = params_fingerprint({"a": 1, "b": {"c": [1, 2], "d": None}}, 1)
    assert ours == params_fingerprint({"b": {"d": None, "c": [1, 2]}, "a": 1}, 1)
    assert ours != params_fingerprint({"a": 1, "b": {"c": [2, 1], "d": None}}, 1)
    assert ours != params_fingerprint({"a": 1, "b": {"c": [1, 2], "d": None}}, 2)


def test_a_footprint_is_that_of_the_fullest_gpu() -> None:
    footprint = Footprint.of({"cpu": 5, "GPU-0": 7, "GPU-1": 9})
    assert footprint == Footprint(5, 9)
    assert footprint.on(["GPU-3", "GPU-4"]) == {"cpu": 5, "GPU-3": 9, "GPU-4": 9}
    assert Footprint.of({}) == Footprint(0, 0)
