"""Interactive output at a terminal: the live table, progress bars, questions, and Ctrl-C."""

from __future__ import annotations

import json
import time

import pytest

from tests.cli.command import CTRL_C, berth, terminal
from tests.fake_hub import FakeHub

pytestmark = pytest.mark.timeout(120)

NEVER_S = "600"


def test_the_live_table_shows_a_change_at_once(url: str) -> None:
    """By the event: the next poll would come in ten minutes."""
    berth(url, "stop", "talker")
    with terminal(url, "ps", "--watch", "--interval", NEVER_S) as table:
        table.expect("IDLE UNTIL")
        time.sleep(1.0)  # its other connection, for events, can't be seen from here
        assert berth(url, "start", "talker").returncode == 0
        table.expect("running")
        assert "\x1b[32mrunning" in table.raw
        table.type(CTRL_C)
        assert table.wait() == 130
        assert "Traceback" not in table.screen


def test_colours_can_be_switched_off(url: str) -> None:
    assert berth(url, "start", "talker").returncode == 0
    assert "\x1b" not in berth(url, "ps").stdout
    with terminal(url, "ps", NO_COLOR="1") as table:
        assert table.wait() == 0
        assert "running" in table.screen
        assert "\x1b[32m" not in table.raw


def test_a_download_shows_bars_and_continues_after_ctrl_c(url: str, hub: FakeHub) -> None:
    hub.stall_at = 3 * 2**20
    with terminal(url, "pull", "berth/demo") as pull:
        pull.expect("berth/demo")
        pull.expect("model.safetensors")
        assert hub.stalled.wait(30)
        pull.expect("3.0/6.4 MiB")  # written, not only sent
        pull.type(CTRL_C)
        assert pull.wait() == 130
        assert "pull it again to resume" in pull.screen
        assert "Traceback" not in pull.screen
    hub.stall_at = None
    hub.go_on.set()
    with terminal(url, "pull", "berth/demo") as again:
        assert again.wait() == 0
        assert "berth/demo: " in again.screen
    assert any(part for part in hub.downloads("model.safetensors"))  # a range: not from the start


def test_deleting_asks_for_confirmation(url: str) -> None:
    assert berth(url, "start", "talker").returncode == 0
    replica = json.loads(berth(url, "show", "talker", "--json").stdout)["replicas"][0]
    with terminal(url, "rm", replica) as no:
        no.expect(f"Stop and delete instance {replica}? [y/N]")
        no.type("n\r")
        assert no.wait() == 1
    with terminal(url, "rm", replica) as interrupted:
        interrupted.expect("[y/N]")
        assert interrupted.interrupt() == 130
    assert berth(url, "show", replica).returncode == 0
    with terminal(url, "rm", replica) as yes:
        yes.expect("[y/N]")
        yes.type("y\r")
        assert yes.wait() == 0
    assert berth(url, "show", replica).returncode == 4


def test_a_waiting_start_is_shown(url: str) -> None:
    with terminal(url, "start", "team/quiet") as start:
        start.expect("start team/quiet …")
        start.expect("model team/quiet is running")
        assert start.wait() == 0
