"""A models.yaml at or above the limits: it is read off the event loop and delays no request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.berth_process import BerthProcess, running_berth

BAR_S = 0.25  # by how much a response may be delayed


def models(count: int, tag: str) -> str:
    entries = (
        f"  model-{n}:\n    model: {tag}/name-{n}\n    aliases: [alias-{n}]\n"
        f"    params: {{max_model_len: {n + 1}}}\n"
        for n in range(count)
    )
    return "models:\n" + "".join(entries)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models.yaml."""
    file = tmp_path_factory.mktemp("catalog") / "models.yaml"
    file.write_text(models(3, "few"))
    return file


@pytest.fixture(scope="module")
def berth(file: Path) -> Iterator[BerthProcess]:
    with running_berth(file.parent, MODELS_FILE=str(file), HF_HOME=str(file.parent)) as berth:
        yield berth
        assert "Traceback" not in berth.output()


def write(file: Path, text: str) -> None:
    """At once: Berth watches the file, and a half-written one may be a valid catalog with fewer models."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


@contextmanager
def asking(berth: BerthProcess) -> Iterator[list[float]]:
    """Request /health all the time; returns the seconds between responses."""
    gaps: list[float] = []
    stop, begun = threading.Event(), threading.Event()

    def ask() -> None:
        with berth.client() as client:
            last = time.perf_counter()
            while not stop.is_set() or not gaps:
                assert client.get("/health").status_code == 200
                now = time.perf_counter()
                gaps.append(now - last)
                last = now
                begun.set()
                time.sleep(0.005)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        assert begun.wait(30)
        gaps.clear()
        yield gaps
    finally:
        stop.set()
        thread.join()  # after one more answer


def reload(client: httpx.Client) -> httpx.Response:
    return client.post("/reload", timeout=60)


def read_large(berth: BerthProcess, client: httpx.Client, file: Path, first: str, second: str) -> list[float]:
    """Gaps between another client's responses while a reload and the watcher each read a large catalog."""
    write(file, models(1000, first))
    with asking(berth) as gaps:
        answer = reload(client)
        assert answer.status_code == 200, answer.text[:300]
        assert answer.json()["models"] >= 1000
        write(file, models(1000, second))  # noticed by the check every two seconds
        deadline = time.monotonic() + 60
        while client.get("/models/model-7").json()["model"] != f"{second}/name-7":
            assert time.monotonic() < deadline
            time.sleep(0.1)
    return gaps


def test_requests_are_served_while_a_large_catalog_is_read(berth: BerthProcess, file: Path) -> None:
    """The calmest of three readings counts: other work on the machine only lengthens a gap."""
    with berth.client() as client:
        with asking(berth) as undisturbed:
            time.sleep(1)
        longest: list[float] = []
        for number in range(3):
            gaps = read_large(berth, client, file, f"many{number}", f"others{number}")
            longest.append(max(gaps))
            if longest[-1] < max(undisturbed) + BAR_S:
                break
        assert min(longest) < max(undisturbed) + BAR_S, (longest, max(undisturbed))
        write(file, models(3, "few"))
        assert reload(client).json()["models"] < 10


REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    "20,000 models": (lambda: models(20_000, "far-too-many"), "larger than the 1 MiB"),
    "20,000 short models": (
        lambda: "models:\n" + "".join(f" m{n}: {{}}\n" for n in range(20_000)),
        "2000 entries",
    ),
    "aliases of aliases": (
        lambda: (
            "x0: &x0 [lol]\n"
            + "\n".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 9))
        ),
        "50,000 values",
    ),
    "deep": (lambda: "models: " + "[" * 50_000, "32 deep"),
    "100 MB": (lambda: "#" * 100_000_000, "larger than the 1 MiB"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_too_large_catalog_is_refused_without_delaying_requests(
    berth: BerthProcess, file: Path, what: str
) -> None:
    """The calmest of three attempts counts, as above."""
    text, problem = REFUSED[what]
    before = file.read_text()
    longest: list[float] = []
    with berth.client() as client:
        with asking(berth) as undisturbed:
            time.sleep(0.5)
        try:
            write(file, text())
            while len(longest) < 3 and (not longest or longest[-1] >= max(undisturbed) + BAR_S):
                with asking(berth) as disturbed:
                    answer = reload(client)
                assert answer.status_code == 422
                assert problem in answer.json()["error"]["message"]
                assert str(file) in answer.json()["error"]["message"]
                assert len(answer.content) < 2000
                assert client.get("/models/model-0").status_code == 200  # the old one stays
                longest.append(max(disturbed))
        finally:
            write(file, before)
        assert min(longest) < max(undisturbed) + BAR_S, (longest, max(undisturbed))
