"""The process of one grammar: compiles it, then says for each sequence which tokens may come next.

Three threads. One compiles, one says masks, and the main one looks after both: what takes long leaves the
processors to others first, and ends with the process when it has had its time. The compiler's thread isn't
used again, so that a grammar that was slow to compile is followed as promptly as any.
"""

from __future__ import annotations

import json
import mmap
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from engine.errors import InvalidRequest
from engine.structured.spec import StructuredKind, StructuredOutput
from engine.structured.vocabulary import Vocabulary
from engine.structured.wire import (
    ANSWER,
    ASK,
    FAREWELL,
    MAX_SEQUENCES,
    Answer,
    Ask,
    Limits,
    pack,
    read_frame,
    too_large,
    too_slow,
)
from engine.structured.xgrammar_compile import compile_grammar

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar, GrammarMatcher, TokenizerInfo

_SLOW_COMPILATION_S = 0.15  # of processor time; then it is slow
_SLOW_MASK_S = 0.02  # of processor time; others take a hundredth of that
_SLOW_MASKS_S = 0.1  # together; then they leave the processors to others
_NICENESS = 10  # a tenth of a processor that the engine wants too
_SHARE_OF_SLOW = 4  # all that is slow has one in so many processors
_LOOK_S = 0.02  # of processor time
_SENT_TOGETHER_S = 0.001  # of answers: each message wakes the engine


def serve_grammar(link: socket.socket, masks: int, info: TokenizerInfo, vocabulary: Vocabulary) -> NoReturn:
    """Until the engine closes its end. `masks` is the descriptor of the shared ones."""
    asked = json.loads(read_frame(link))
    wanted = StructuredOutput(**{**asked["wanted"], "kind": StructuredKind(asked["wanted"]["kind"])})
    process = _Process(link, wanted, Limits(**asked["limits"]))
    # Blocked in all threads, so that whoever waits for it has it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
    compiled: queue.SimpleQueue[CompiledGrammar] = queue.SimpleQueue()
    process.start(lambda: process.serve(compiled.get(), masks, vocabulary))
    process.compiler_thread = process.start(lambda: compiled.put(process.compile(info, vocabulary)))
    process.watch()


class _Process:
    def __init__(self, link: socket.socket, wanted: StructuredOutput, limits: Limits) -> None:
        self._link = link
        self._wanted = wanted
        self._limits = limits
        self._begun_s = time.process_time()  # what is done now; one thread works at a time
        self._is_compiling = True
        self._is_slow = False
        self._slow_masks_s = 0.0  # of all sequences
        self._talking = threading.RLock()
        self.compiler_thread = 0
        self._masks_thread = 0

    # The main thread

    def watch(self) -> NoReturn:
        """Looks whenever the process has used a processor for a while; asleep, it costs nothing."""
        signal.setitimer(signal.ITIMER_PROF, _LOOK_S, _LOOK_S)
        while True:
            signal.sigwait({signal.SIGPROF})
            with self._talking:  # what it finds is so until it is said
                spent = time.process_time() - self._begun_s
                if self._is_compiling:
                    self._look_at_compiler(spent)
                else:
                    self._look_at_masks(spent)

    def _look_at_compiler(self, spent: float) -> None:
        if spent > self._limits.compile_s:
            self._refuse(f"takes longer than {self._limits.compile_s:g} s to compile: simplify it.")
        if spent > _SLOW_COMPILATION_S and not self._is_slow:
            self._say(pack({"is_slow": True}))
            self._give_way(self.compiler_thread)
            self._is_slow = True

    def _look_at_masks(self, spent: float) -> None:
        if spent > self._limits.mask_s:
            text = self._too_slow.encode()
            self._say(ANSWER.pack(FAREWELL, Answer.REFUSED, False, len(text)) + text, is_last=True)
        if self._slow_masks_s + spent > _SLOW_MASKS_S:
            self._give_way(self._masks_thread)

    def start(self, work: Callable[[], object]) -> int:
        """The number of a thread that does this, and ends the process if it fails."""

        def run() -> None:
            try:
                work()
            except BaseException:  # the engine reads the link's end
                os._exit(0)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread.native_id or 0

    def _give_way(self, thread: int) -> None:
        """A low priority isn't enough: with such threads on all processors, others waited 0.1 s for one."""
        with suppress(OSError, AttributeError):  # only Linux has these for each thread; or it has ended
            os.setpriority(os.PRIO_PROCESS, thread, _NICENESS)
            processors = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(thread, processors[-max(1, len(processors) // _SHARE_OF_SLOW) :])

    def _say(self, data: bytes | bytearray, *, is_last: bool = False) -> None:
        with self._talking:
            self._link.sendall(data)
            if is_last:
                os._exit(0)

    def _refuse(self, why: str) -> NoReturn:
        param = self._wanted.param
        self._say(pack({"refused": f"{param} {why}", "param": param}), is_last=True)
        raise AssertionError("the process has ended")

    # The compiler's

    def compile(self, info: TokenizerInfo, vocabulary: Vocabulary) -> CompiledGrammar:
        from xgrammar import GrammarCompiler

        compiler = GrammarCompiler(info, max_threads=1, cache_enabled=False)
        try:
            grammar = compile_grammar(compiler, self._wanted, vocabulary.vocab_size, vocabulary.eos_token_ids)
        except InvalidRequest as error:
            self._say(pack({"refused": error.message, "param": error.param}), is_last=True)
        except (MemoryError, RecursionError):
            self._refuse(too_large("compile"))
        with self._talking:
            self._begun_s = time.process_time()
            self._is_compiling = False
            self._say(pack({"num_bytes": grammar.memory_size_bytes, "pid": os.getpid()}))
        return grammar

    # The one that says masks

    def serve(self, grammar: CompiledGrammar, masks: int, vocabulary: Vocabulary) -> NoReturn:
        self._masks_thread = threading.get_native_id()
        sequences = _Sequences(grammar, masks, vocabulary)
        asked = bytearray()
        while data := self._link.recv(64 * ASK.size):
            asked += data
            whole = len(asked) - len(asked) % ASK.size
            answers, since = bytearray(), time.monotonic()
            for what, row, number, token in ASK.iter_unpack(bytes(asked[:whole])):
                if what == Ask.CLOSE:
                    sequences.close(row)
                else:
                    answers += self._answer(sequences, what, row, number, token)
                if time.monotonic() - since > _SENT_TOGETHER_S:
                    self._say(answers)
                    answers, since = bytearray(), time.monotonic()
            self._say(answers)
            del asked[:whole]
        raise EOFError

    def _answer(self, sequences: _Sequences, what: int, row: int, number: int, token: int) -> bytes:
        self._begun_s = time.process_time()
        answer, has_ended, text = Answer.FAILED, False, ""
        try:
            answer, has_ended = sequences.follow(what, row, token)
        except _CantGoOn as error:
            answer, text = Answer.REFUSED, str(error)
        except MemoryError:
            answer, text = Answer.REFUSED, f"The grammar {too_large('follow')}"
        except Exception as error:  # foreign code, for one client: it is told
            text = str(error)
        spent = time.process_time() - self._begun_s
        if spent > _SLOW_MASK_S:
            self._slow_masks_s += spent
            total = sequences.add_slow(row, spent)
            if spent > self._limits.mask_s:
                answer, text = Answer.REFUSED, self._too_slow
            elif total > self._limits.slow_masks_s:
                most_s = self._limits.slow_masks_s
                answer, text = Answer.REFUSED, too_slow(f"its slow steps have taken more than {most_s:g} s")
        said = text.encode(errors="replace")[:500]
        return ANSWER.pack(number, answer, has_ended, len(said)) + said

    @property
    def _too_slow(self) -> str:
        return too_slow(
            f"what may come next, after the text so far, took more than {self._limits.mask_s:g} s"
        )


class _CantGoOn(Exception):
    """By the grammar itself."""


class _Sequences:
    def __init__(self, grammar: CompiledGrammar, masks: int, vocabulary: Vocabulary) -> None:
        import numpy as np

        words = -(-vocabulary.vocab_size // 32)
        shared = mmap.mmap(masks, MAX_SEQUENCES * words * 4)
        self._masks = np.frombuffer(shared, np.int32).reshape(MAX_SEQUENCES, words)
        self._grammar = grammar
        self._ends_by_itself = not vocabulary.eos_token_ids
        self._matchers: dict[int, GrammarMatcher] = {}
        self._slow_s: dict[int, float] = {}  # by row: spent on masks that took long

    def close(self, row: int) -> None:
        self._matchers.pop(row, None)
        self._slow_s.pop(row, None)

    def add_slow(self, row: int, spent: float) -> float:
        self._slow_s[row] = total = self._slow_s.get(row, 0.0) + spent
        return total

    def follow(self, what: int, row: int, token: int) -> tuple[Answer, bool]:
        """What may come next, and whether the grammar has ended."""
        from xgrammar import GrammarMatcher

        if what == Ask.OPEN:
            matcher = GrammarMatcher(self._grammar, terminate_without_stop_token=self._ends_by_itself)
            self._matchers[row] = matcher
        else:
            matcher = self._matchers[row]
            if not matcher.accept_token(token):
                raise ValueError(f"token {token} doesn't follow the grammar")
        if matcher.is_terminated():
            return Answer.ANYTHING, True
        masks: Any = self._masks
        if not matcher.fill_next_token_bitmask(masks, row):
            return Answer.ANYTHING, False
        if not self._masks[row].any():
            raise _CantGoOn("The grammar can't go on after the text so far: no token of the model's fits.")
        return Answer.RESTRICTED, False
