"""Follows grammars: matchers advance and fill masks on two threads, of which slow sequences have one.

The compiler's limits bound the work of one mask, and it releases the interpreter's lock meanwhile.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from engine.errors import EngineError, GenerationFailed, InvalidRequest
from engine.structured.limits import Limits

if TYPE_CHECKING:
    from llguidance import LLMatcher

_SLOW_MASK_S = 0.02  # of processor time; most take a hundredth of that
_NICENESS = 10
_HALF_LIFE_S = 1.0  # of what a tenant has used
_OF_LIMITS = ("too many", "fuel", "limit", "max is", "too large", "too complex")


class Lane:
    """One thread, from the first work until `close`. The tenant that has used least is next."""

    def __init__(self, name: str, niceness: int = 0) -> None:
        self._waiting: list[tuple[float, int, str, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._spent: dict[str, float] = defaultdict(float)
        self._halved_at = time.monotonic()
        self._changed = threading.Condition()
        self._is_closed = False
        self._niceness = niceness
        self._name = name
        self._has_begun = False

    def submit(self, tenant: str, work: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._waiting, (self._spent[tenant], next(self._numbers), tenant, work))
            self._changed.notify()
            if not self._has_begun:
                self._has_begun = True
                threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _run(self) -> None:
        if self._niceness:
            with suppress(OSError, AttributeError):  # only Linux has priorities of threads
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        while True:
            with self._changed:
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                _, _, tenant, work = heapq.heappop(self._waiting)
            started = time.thread_time()
            work()
            del work
            self._note(tenant, time.thread_time() - started)

    def _note(self, tenant: str, spent: float) -> None:
        with self._changed:
            self._spent[tenant] += spent
            if time.monotonic() - self._halved_at > _HALF_LIFE_S:
                self._halved_at = time.monotonic()
                for name in tuple(self._spent):
                    self._spent[name] /= 2
                    if self._spent[name] < 1e-6:
                        del self._spent[name]


@dataclass(slots=True)
class Lanes:
    quick: Lane = field(default_factory=lambda: Lane("masks"))
    slow: Lane = field(default_factory=lambda: Lane("slow-masks", _NICENESS))

    def close(self) -> None:
        self.quick.close()
        self.slow.close()


@dataclass(frozen=True, slots=True)
class CompiledOutput:
    matcher: LLMatcher  # at the beginning of the output; each sequence has a copy
    param: str  # the field with the grammar
    tenant: str


@dataclass(frozen=True, slots=True)
class _Change:
    """One step forward, or several back; nothing = only the mask is wanted."""

    token: int | None = None
    num_back: int = 0


class Follower:
    """One sequence's matcher. Its work is done on a lane, a token at a time; one thread asks."""

    def __init__(
        self, compiled: CompiledOutput, lanes: Lanes, num_words: int, num_tokens: int, limits: Limits
    ) -> None:
        import numpy as np

        self._compiled = compiled
        self._matcher = compiled.matcher.deep_copy()
        self._lanes = lanes
        self._tenant = compiled.tenant
        self._param = compiled.param
        self._limits = limits
        self._words: Any = np.zeros(-(-num_tokens // 32), np.int32)  # of the compiler's vocabulary
        self.mask = self._words[:num_words]
        self._ready = threading.Event()
        self._changes: list[_Change] = []  # not begun yet
        self._changed = threading.Lock()  # around them and the event
        self._working = threading.Lock()  # one lane at a time
        self._tokens: list[int] = []  # that the matcher has been given; the last may be refused
        self._slow_s = 0.0
        self._failure: EngineError | None = None
        self.has_ended = False
        self._submit(_Change())

    def advance(self, token: int) -> None:
        self._submit(_Change(token))

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens. Does not wait; nor need the last token's mask be ready."""
        self._submit(_Change(num_back=num_tokens))

    def wait(self, timeout_s: float) -> bool:
        return self._ready.wait(timeout_s) if timeout_s > 0 else self._ready.is_set()

    def check(self) -> None:
        """Raises what the last step has failed with. Call it once `wait` returned True."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    def _submit(self, change: _Change) -> None:
        with self._changed:
            self._changes.append(change)
            self._ready.clear()
        lane = self._lanes.slow if self._slow_s else self._lanes.quick
        me = weakref.ref(self)

        def work() -> None:
            if (follower := me()) is not None:  # else its sequence has ended
                follower._work()

        lane.submit(self._tenant, work)

    def _work(self) -> None:
        """Make all changes so far, in order, and then the mask."""
        with self._working:
            while changes := self._take_changes():
                self._step(changes)

    def _take_changes(self) -> list[_Change]:
        with self._changed:
            changes, self._changes = self._changes, []
            if not changes:
                self._ready.set()
            return changes

    def _step(self, changes: list[_Change]) -> None:
        started = time.thread_time()
        for change in changes:
            self._try(partial(self._apply, change))
        if self._failure is None:
            self._try(self._fill_mask)
        spent = time.thread_time() - started
        if spent > _SLOW_MASK_S:
            self._slow_s += spent
            if self._slow_s > self._limits.slow_masks_s:
                most_s = self._limits.slow_masks_s
                self._failure = self._too_slow(f"its slow steps have taken more than {most_s:g} s")

    def _try(self, work: Callable[[], None]) -> None:
        """Work of the matcher; what it raises becomes the sequence's failure."""
        try:
            work()
        except EngineError as error:
            self._failure = error
        except BaseException as error:  # foreign code, for one client; also its panics: reported to it
            self._failure = GenerationFailed(f"The output's grammar failed: {type(error).__name__}: {error}")

    def _apply(self, change: _Change) -> None:
        if change.num_back:
            self._go_back(change.num_back)
        if change.token is not None:
            self._tokens.append(change.token)
            if self._failure is None and not self._matcher.consume_token(change.token):
                self._raise()

    def _go_back(self, num_tokens: int) -> None:
        """Also from an error, except for one of all that the sequence has spent."""
        del self._tokens[len(self._tokens) - num_tokens :]
        self.has_ended = False
        if self._failure is None and not self._matcher.is_error() and self._matcher.rollback(num_tokens):
            return
        # A matcher doesn't leave an error, not even by a reset.
        self._matcher = self._compiled.matcher.deep_copy()
        if not self._matcher.consume_tokens(self._tokens):
            self._raise()
        if self._slow_s <= self._limits.slow_masks_s:
            self._failure = None

    def _fill_mask(self) -> None:
        matcher = self._matcher
        if matcher.is_stopped():
            if matcher.is_error():
                self._raise()
            self.has_ended = True
            return
        matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        if matcher.is_error():
            self._raise()
        if self.mask.any():
            return
        self.has_ended = matcher.is_accepting()  # the end token is none of the model's
        if not self.has_ended:
            raise InvalidRequest(
                "The grammar can't continue after the text so far: none of the model's tokens fits.",
                param=self._param,
            )

    def _raise(self) -> NoReturn:
        error = self._matcher.get_error()
        if is_too_large(error):
            raise self._too_slow("the next tokens, after the text so far, can be read in too many ways")
        raise GenerationFailed(f"The output's grammar failed: {one_line(error)}")

    def _too_slow(self, why: str) -> InvalidRequest:
        return InvalidRequest(
            f"The grammar takes too long to follow: {why}. Simplify it: nested counts and ambiguous parts "
            "cost most.",
            param=self._param,
        )


def is_too_large(error: str) -> bool:
    """Whether the compiler's message says that one of its limits is reached."""
    return any(word in error.lower() for word in _OF_LIMITS)


def one_line(error: str) -> str:
    return " ".join(error.replace("<non-verbose/>", "").split())[:300]
