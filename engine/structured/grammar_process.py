"""The process of one grammar: compiles it, then computes the masks of the sequences that follow it.

It has three threads: one compiles, one computes masks, and the main thread monitors both. Slow work is first
deprioritised, and ends with the process when its time is used up. The compiler's thread isn't used again, so
that masks are prompt even for a grammar that was slow to compile.
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
    FINAL_REPLY,
    MAX_SEQUENCES,
    REPLY,
    REQUEST,
    Limits,
    MaskStatus,
    RequestKind,
    pack,
    read_frame,
    too_large,
    too_slow,
)
from engine.structured.xgrammar_compile import compile_grammar

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar, GrammarMatcher, TokenizerInfo

_SLOW_COMPILATION_S = 0.15  # of processor time; longer ones are slow
_SLOW_MASK_S = 0.02  # of processor time; most take a hundredth of that
_SLOW_MASKS_S = 0.1  # together; then they are deprioritised
_NICENESS = 10  # a tenth of a processor that the engine uses too
_SHARE_OF_SLOW = 4  # all slow work runs on one in so many processors
_CHECK_S = 0.02  # of processor time
_SENT_TOGETHER_S = 0.001  # of replies: each message wakes the engine


def serve_grammar(link: socket.socket, masks: int, info: TokenizerInfo, vocabulary: Vocabulary) -> NoReturn:
    """Serve requests until the engine closes its end. `masks` is the descriptor of the shared masks."""
    requests = json.loads(read_frame(link))
    wanted = StructuredOutput(**{**requests["wanted"], "kind": StructuredKind(requests["wanted"]["kind"])})
    process = _Process(link, wanted, Limits(**requests["limits"]))
    # Blocked in all threads, so that sigwait receives it.
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
        self._started_s = time.process_time()  # of the current work; one thread works at a time
        self._is_compiling = True
        self._is_slow = False
        self._slow_masks_s = 0.0  # of all sequences
        self._lock = threading.RLock()
        self.compiler_thread = 0
        self._masks_thread = 0

    # The main thread

    def watch(self) -> NoReturn:
        """Check whenever the process has used a processor for a while; costs nothing while it is idle."""
        signal.setitimer(signal.ITIMER_PROF, _CHECK_S, _CHECK_S)
        while True:
            signal.sigwait({signal.SIGPROF})
            with self._lock:  # so that its findings hold until they are sent
                spent = time.process_time() - self._started_s
                if self._is_compiling:
                    self._check_compiler(spent)
                else:
                    self._check_masks(spent)

    def _check_compiler(self, spent: float) -> None:
        if spent > self._limits.compile_s:
            self._refuse(f"takes longer than {self._limits.compile_s:g} s to compile: simplify it.")
        if spent > _SLOW_COMPILATION_S and not self._is_slow:
            self._send(pack({"is_slow": True}))
            self._deprioritise(self.compiler_thread)
            self._is_slow = True

    def _check_masks(self, spent: float) -> None:
        if spent > self._limits.mask_s:
            text = self._too_slow.encode()
            self._send(REPLY.pack(FINAL_REPLY, MaskStatus.REFUSED, False, len(text)) + text, is_last=True)
        if self._slow_masks_s + spent > _SLOW_MASKS_S:
            self._deprioritise(self._masks_thread)

    def start(self, work: Callable[[], object]) -> int:
        """Start a thread that does `work` and ends the process if it fails. Returns the thread's id."""

        def run() -> None:
            try:
                work()
            except BaseException:  # the engine sees the socket close
                os._exit(0)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread.native_id or 0

    def _deprioritise(self, thread: int) -> None:
        """Low priority isn't enough: with such threads on all processors, others waited 0.1 s for one."""
        with suppress(OSError, AttributeError):  # only Linux has these per thread; or the thread has ended
            os.setpriority(os.PRIO_PROCESS, thread, _NICENESS)
            processors = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(thread, processors[-max(1, len(processors) // _SHARE_OF_SLOW) :])

    def _send(self, data: bytes | bytearray, *, is_last: bool = False) -> None:
        with self._lock:
            self._link.sendall(data)
            if is_last:
                os._exit(0)

    def _refuse(self, why: str) -> NoReturn:
        param = self._wanted.param
        self._send(pack({"refused": f"{param} {why}", "param": param}), is_last=True)
        raise AssertionError("the process has ended")

    # The compiler's thread

    def compile(self, info: TokenizerInfo, vocabulary: Vocabulary) -> CompiledGrammar:
        from xgrammar import GrammarCompiler

        compiler = GrammarCompiler(info, max_threads=1, cache_enabled=False)
        try:
            grammar = compile_grammar(compiler, self._wanted, vocabulary.vocab_size, vocabulary.eos_token_ids)
        except InvalidRequest as error:
            self._send(pack({"refused": error.message, "param": error.param}), is_last=True)
        except (MemoryError, RecursionError):
            self._refuse(too_large("compile"))
        with self._lock:
            self._started_s = time.process_time()
            self._is_compiling = False
            self._send(pack({"num_bytes": grammar.memory_size_bytes, "pid": os.getpid()}))
        return grammar

    # The masks' thread

    def serve(self, grammar: CompiledGrammar, masks: int, vocabulary: Vocabulary) -> NoReturn:
        self._masks_thread = threading.get_native_id()
        sequences = _Sequences(grammar, masks, vocabulary)
        requests = bytearray()
        while data := self._link.recv(64 * REQUEST.size):
            requests += data
            whole = len(requests) - len(requests) % REQUEST.size
            replies, since = bytearray(), time.monotonic()
            for kind, row, number, token in REQUEST.iter_unpack(bytes(requests[:whole])):
                if kind == RequestKind.CLOSE:
                    sequences.close(row)
                else:
                    replies += self._reply_to(sequences, kind, row, number, token)
                if time.monotonic() - since > _SENT_TOGETHER_S:
                    self._send(replies)
                    replies, since = bytearray(), time.monotonic()
            self._send(replies)
            del requests[:whole]
        raise EOFError

    def _reply_to(self, sequences: _Sequences, kind: int, row: int, number: int, token: int) -> bytes:
        self._started_s = time.process_time()
        status, has_ended, text = MaskStatus.FAILED, False, ""
        try:
            status, has_ended = sequences.follow(kind, row, token)
        except _DeadEnd as error:
            status, text = MaskStatus.REFUSED, str(error)
        except MemoryError:
            status, text = MaskStatus.REFUSED, f"The grammar {too_large('follow')}"
        except Exception as error:  # foreign code, for one client: reported to it
            text = str(error)
        spent = time.process_time() - self._started_s
        if spent > _SLOW_MASK_S:
            self._slow_masks_s += spent
            total = sequences.add_slow(row, spent)
            if spent > self._limits.mask_s:
                status, text = MaskStatus.REFUSED, self._too_slow
            elif total > self._limits.slow_masks_s:
                most_s = self._limits.slow_masks_s
                status, text = (
                    MaskStatus.REFUSED,
                    too_slow(f"its slow steps have taken more than {most_s:g} s"),
                )
        encoded = text.encode(errors="replace")[:500]
        return REPLY.pack(number, status, has_ended, len(encoded)) + encoded

    @property
    def _too_slow(self) -> str:
        return too_slow(f"the next tokens, after the text so far, took more than {self._limits.mask_s:g} s")


class _DeadEnd(Exception):
    """The grammar itself allows no token."""


class _Sequences:
    def __init__(self, grammar: CompiledGrammar, masks: int, vocabulary: Vocabulary) -> None:
        import numpy as np

        words = -(-vocabulary.vocab_size // 32)
        shared = mmap.mmap(masks, MAX_SEQUENCES * words * 4)
        self._masks = np.frombuffer(shared, np.int32).reshape(MAX_SEQUENCES, words)
        self._grammar = grammar
        self._ends_by_itself = not vocabulary.eos_token_ids
        self._matchers: dict[int, GrammarMatcher] = {}
        self._slow_s: dict[int, float] = {}  # by row: time spent on slow masks

    def close(self, row: int) -> None:
        self._matchers.pop(row, None)
        self._slow_s.pop(row, None)

    def add_slow(self, row: int, spent: float) -> float:
        self._slow_s[row] = total = self._slow_s.get(row, 0.0) + spent
        return total

    def follow(self, kind: int, row: int, token: int) -> tuple[MaskStatus, bool]:
        """The status of the next mask, and whether the grammar has ended."""
        from xgrammar import GrammarMatcher

        if kind == RequestKind.OPEN:
            matcher = GrammarMatcher(self._grammar, terminate_without_stop_token=self._ends_by_itself)
            self._matchers[row] = matcher
        else:
            matcher = self._matchers[row]
            if not matcher.accept_token(token):
                raise ValueError(f"the grammar doesn't allow token {token}")
        if matcher.is_terminated():
            return MaskStatus.ANYTHING, True
        masks: Any = self._masks
        if not matcher.fill_next_token_bitmask(masks, row):
            return MaskStatus.ANYTHING, False
        if not self._masks[row].any():
            raise _DeadEnd(
                "The grammar can't continue after the text so far: none of the model's tokens fits."
            )
        return MaskStatus.RESTRICTED, False
