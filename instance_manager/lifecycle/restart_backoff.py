"""Whether and when a failed engine is restarted. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from instance_manager.config import RestartPolicy, RestartRules


@dataclass(slots=True)
class RestartBackoff:
    """The restarts of one instance."""

    rules: RestartRules
    _times: list[float] = field(default_factory=list)  # of failures in the window that led to a restart

    def next_delay_s(self, now: float, *, was_ready: bool) -> float | None:
        """Seconds until the restart after a failure at `now`; None = no automatic restart.

        An engine that has never been ready isn't restarted: it would fail to start again for the same
        reason. Only while restarts are in progress does a failed start count like any other failure.
        """
        rules = self.rules
        self._times = [time for time in self._times if now - time < rules.window_s]
        if rules.policy is RestartPolicy.NEVER or not (was_ready or self._times):
            return None
        if len(self._times) >= rules.limit:
            return None
        delay_s = min(rules.initial_backoff_s * 2.0 ** len(self._times), rules.max_backoff_s)
        self._times.append(now)
        return delay_s

    def reset(self) -> None:
        """Forget earlier failures: a client has started the instance."""
        self._times.clear()
