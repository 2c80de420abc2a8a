"""Whether and when what has failed starts again: an instance created by hand, or a model of the catalog."""

from __future__ import annotations

import time
from collections.abc import Callable

from instance_manager.config import RestartPolicy, RestartRules


class RestartBackoff:
    """The failures of one instance or one model. Times are the clock's seconds."""

    def __init__(self, rules: RestartRules, clock: Callable[[], float] = time.monotonic) -> None:
        self.retry_at = 0.0  # no start for a request before
        self.restart_at: float | None = None  # when it starts again although no request needs it
        self._rules = rules
        self._clock = clock
        self._times: list[float] = []  # of failures in the window
        self._has_failed = False  # since the last start that succeeded
        self._is_restarting = False  # its next start is an automatic restart

    @property
    def has_failures(self) -> bool:
        """Whether any are remembered, also of before its last start."""
        return bool(self._times)

    @property
    def wait_s(self) -> float:
        """Seconds until a request may start it; 0 = now."""
        return max(0.0, self.retry_at - self._clock())

    @property
    def may_start_unasked(self) -> bool:
        """Whether Berth may start it now although no client has asked for that."""
        is_allowed = self._rules.policy is not RestartPolicy.NEVER or not self._has_failed
        return is_allowed and self.wait_s == 0 and self.restart_at is None

    def record_failure(self, *, was_ready: bool) -> float | None:
        """Seconds until it is restarted; None = it isn't, as the policy or the limit says.

        An engine that has never been ready isn't restarted: it would fail to start again for the same
        reason. Only while restarts are in progress does a failed start count like any other failure.
        The first failure of an engine that was ready doesn't delay a start that a request needs.
        """
        rules, now = self._rules, self._clock()
        self._times = [time for time in self._times if now - time < rules.window_s]
        delay_s = min(rules.initial_backoff_s * 2.0 ** len(self._times), rules.max_backoff_s)
        is_in_limit = rules.policy is not RestartPolicy.NEVER and len(self._times) < rules.limit
        self.retry_at = now if was_ready and not self._times else now + delay_s
        self._times.append(now)
        self._has_failed = True
        self._is_restarting = is_in_limit and (was_ready or self._is_restarting)
        self.restart_at = now + delay_s if self._is_restarting else None
        return delay_s if self._is_restarting else None

    def record_start(self) -> None:
        """It runs. Its failures still count, as it may fail again."""
        self._has_failed = self._is_restarting = False
        self.retry_at = 0.0

    def reset(self) -> None:
        """Forget all failures: a client has started or stopped it, or its entry was corrected."""
        self.record_start()
        self.restart_at = None
        self._times.clear()
