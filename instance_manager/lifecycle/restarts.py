"""Whether and when an engine that has failed is started again. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from instance_manager.config import RestartPolicy, RestartRules


@dataclass(slots=True)
class Restarts:
    """Of one instance."""

    rules: RestartRules
    _times: list[float] = field(default_factory=list)  # of the failures in the window that were answered

    def next_delay_s(self, now: float, *, was_ready: bool) -> float | None:
        """Seconds until it is started again after a failure at `now`; None = not by itself.

        One that has never been ready is not tried again: what keeps it from starting will do so again. Only
        amid restarts a start that fails counts like any other failure.
        """
        rules = self.rules
        self._times = [time for time in self._times if now - time < rules.window_s]
        if rules.policy is RestartPolicy.NEVER or not (was_ready or self._times):
            return None
        if len(self._times) >= rules.limit:
            return None
        delay_s = min(rules.first_back_off_s * 2.0 ** len(self._times), rules.longest_back_off_s)
        self._times.append(now)
        return delay_s

    def reset_backoff(self) -> None:
        """Somebody has started it: what was before doesn't count."""
        self._times.clear()
