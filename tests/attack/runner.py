"""Runs attacks one after the other, each up to three times; begins anew where one has brought Berth down."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from tests.attack.attack import Attack, Field
from tests.attack.ground import Ground
from tests.attack.report import Result
from tests.attack.verdict import Seen, calmest, may_be_noise
from tests.faults.environment import Skipped

LIMIT_S = 30.0  # of an attack
_AROUND_IT_S = 30.0  # to prepare and to check it, and for the victim to be calm before and after
_MAX_SHOWN = 500


class Runner:
    """`tell` hears of each result."""

    def __init__(
        self,
        folder: Path,
        *,
        root: Path,
        first_port: int,
        num_attempts: int,
        deadline: float,
        tell: Callable[[Result], None],
    ) -> None:
        self.results: list[Result] = []
        self._folder = folder
        self._root = root
        self._first_port = first_port
        self._num_attempts = num_attempts
        self._deadline = deadline
        self._tell = tell
        self._numbers = count()
        self._ground: Ground | None = None

    def run(self, field: Field, wanted: Sequence[str]) -> None:
        """Those attacks that have a wanted word in their name; all where none is wanted."""
        chosen = [
            one
            for one in field.attacks
            if not wanted or any(word in f"{field.name}: {one.name}" for word in wanted)
        ]
        for attack in chosen:
            self._note(self._run_one(field, attack))
        if self._ground is not None:
            seen = Seen(problems=self._ground.end_well())
            self.close()
            self._note(Result(field.name, "nothing is left when Berth ends", "–", seen))

    def _note(self, result: Result) -> None:
        self.results.append(result)
        self._tell(result)

    def _run_one(self, field: Field, attack: Attack) -> Result:
        result = Result(field.name, attack.name, attack.who)
        attempts: list[Seen] = []
        while len(attempts) < self._num_attempts and (not attempts or may_be_noise(attempts[-1])):
            if time.monotonic() > self._deadline:
                attempts.append(Seen(problems=["not run: no time was left"]))
                break
            try:
                attempts.append(self._attempt(field, attack))
            except Skipped as reason:
                result.skipped = str(reason)
                return result
        result.seen, result.num_attempts = calmest(attempts), len(attempts)
        return result

    def _attempt(self, field: Field, attack: Attack) -> Seen:
        try:
            ground = self._ground or self._begin_ground(field)
        except AssertionError as error:
            return Seen(problems=[f"no Berth to attack: {str(error)[-_MAX_SHOWN:]}"])
        ground.seen = Seen()
        problems = _act(ground, attack)
        if not ground.has_ended:
            problems += ground.settle()
        ground.seen.problems += problems
        if problems:  # whatever it has left behind is not the next one's
            self.close()
        return ground.seen

    def _begin_ground(self, field: Field) -> Ground:
        number = next(self._numbers)
        ports = {}
        if self._first_port:
            first = self._first_port + number * 10 % 100
            ports = {"APP_PORT": str(first), "VLLM_BASE_PORT": str(first + 1)}
        folder = self._folder / f"{number}-{field.name.replace(' ', '-')}"
        ground = Ground(folder, {**ports, **field.settings}, root=self._root, has_keys=field.has_keys)
        self._ground = ground.__enter__()
        return self._ground

    def close(self) -> None:
        """End the Berth that is being attacked, whatever it is doing."""
        if self._ground is not None:
            self._ground.end()
            self._ground = None


def _act(ground: Ground, attack: Attack) -> list[str]:
    """In a thread, so that one without an end is noticed; Berth's end ends it too."""
    problems: list[str] = []
    skipped: list[Skipped] = []

    def act() -> None:
        try:
            attack.act(ground)
        except Skipped as reason:
            skipped.append(reason)
        except Exception as error:  # the root of an attack: whatever it is, the next one is run
            where = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(one.filename).name}:{one.lineno}" for one in where if "rows" in one.filename]
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            problems.append(f"{kind}{str(error)[:_MAX_SHOWN] or repr(error)} ({' '.join(ours[-2:])})")

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(LIMIT_S + _AROUND_IT_S)
    if thread.is_alive():
        ground.end()
        thread.join(LIMIT_S)
        problems.append(f"the attack did not end within {LIMIT_S:.0f} s")
    elif ground.seen.took_s > LIMIT_S:
        problems.append(f"it took {ground.seen.took_s:.0f} s")
    if skipped:
        raise skipped[0]
    return problems
