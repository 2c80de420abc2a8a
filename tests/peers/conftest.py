"""What these tests measured, told after their last line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_MEASURED = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def note(pytestconfig: pytest.Config) -> Callable[[str, float], None]:
    """Call it with what took how many seconds."""
    lines = pytestconfig.stash.setdefault(_MEASURED, [])
    return lambda what, seconds: lines.append(f"{what}: {seconds:.2f} s")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_MEASURED, []):
        terminalreporter.write_line(line)
