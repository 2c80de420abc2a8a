"""Runs attacks one after the other, each up to three times; restarts Berth if one has brought it down."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from tests.attack.attack import Attack, AttackGroup
from tests.attack.environment import AttackEnvironment
from tests.attack.measurement import Measurement, calmest, may_be_noise
from tests.attack.report import Result
from tests.faults.environment import Skipped

LIMIT_S = 30.0  # for one attack
_OVERHEAD_S = 30.0  # for preparation and checks, and for the victim to be calm before and after
_MAX_SHOWN = 500


class AttackRunner:
    """Calls `on_result` with each result."""

    def __init__(
        self,
        folder: Path,
        *,
        root: Path,
        first_port: int,
        num_attempts: int,
        deadline: float,
        on_result: Callable[[Result], None],
    ) -> None:
        self.results: list[Result] = []
        self._folder = folder
        self._root = root
        self._first_port = first_port
        self._num_attempts = num_attempts
        self._deadline = deadline
        self._on_result = on_result
        self._numbers = count()
        self._env: AttackEnvironment | None = None

    def run(self, group: AttackGroup, wanted: Sequence[str]) -> None:
        """Run the attacks with one of the `wanted` words in their name; all if there are none."""
        chosen = [
            one
            for one in group.attacks
            if not wanted or any(word in f"{group.name}: {one.name}" for word in wanted)
        ]
        for attack in chosen:
            self._note(self._run_one(group, attack))
        if self._env is not None:
            measurement = Measurement(problems=self._env.end_well())
            self.close()
            self._note(Result(group.name, "nothing is left when Berth ends", "–", measurement))

    def _note(self, result: Result) -> None:
        self.results.append(result)
        self._on_result(result)

    def _run_one(self, group: AttackGroup, attack: Attack) -> Result:
        result = Result(group.name, attack.name, attack.who)
        attempts: list[Measurement] = []
        while len(attempts) < self._num_attempts and (not attempts or may_be_noise(attempts[-1])):
            if time.monotonic() > self._deadline:
                attempts.append(Measurement(problems=["not run: no time was left"]))
                break
            try:
                attempts.append(self._attempt(group, attack))
            except Skipped as reason:
                result.skipped = str(reason)
                return result
        result.measurement, result.num_attempts = calmest(attempts), len(attempts)
        return result

    def _attempt(self, group: AttackGroup, attack: Attack) -> Measurement:
        try:
            env = self._env or self._begin_env(group)
        except AssertionError as error:
            return Measurement(problems=[f"Berth did not start: {str(error)[-_MAX_SHOWN:]}"])
        env.measurement = Measurement()
        problems = _act(env, attack)
        if not env.has_ended:
            problems += env.settle()
        env.measurement.problems += problems
        if problems:  # the next attack gets a fresh Berth
            self.close()
        return env.measurement

    def _begin_env(self, group: AttackGroup) -> AttackEnvironment:
        number = next(self._numbers)
        ports = {}
        if self._first_port:
            first = self._first_port + number * 10 % 100
            ports = {"APP_PORT": str(first), "VLLM_BASE_PORT": str(first + 1)}
        folder = self._folder / f"{number}-{group.name.replace(' ', '-')}"
        env = AttackEnvironment(folder, {**ports, **group.settings}, root=self._root, has_keys=group.has_keys)
        self._env = env.__enter__()
        return self._env

    def close(self) -> None:
        """End the attacked Berth, whatever it is doing."""
        if self._env is not None:
            self._env.end()
            self._env = None


def _act(env: AttackEnvironment, attack: Attack) -> list[str]:
    """Run an attack in a thread, so that a hanging one is noticed; ending Berth ends it too."""
    problems: list[str] = []
    skipped: list[Skipped] = []

    def act() -> None:
        try:
            attack.act(env)
        except Skipped as reason:
            skipped.append(reason)
        except Exception as error:  # the root of an attack: the next one runs in any case
            where = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(one.filename).name}:{one.lineno}" for one in where if "rows" in one.filename]
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            problems.append(f"{kind}{str(error)[:_MAX_SHOWN] or repr(error)} ({' '.join(ours[-2:])})")

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(LIMIT_S + _OVERHEAD_S)
    if thread.is_alive():
        env.end()
        thread.join(LIMIT_S)
        problems.append(f"the attack did not end within {LIMIT_S:.0f} s")
    elif env.measurement.took_s > LIMIT_S:
        problems.append(f"it took {env.measurement.took_s:.0f} s")
    if skipped:
        raise skipped[0]
    return problems
