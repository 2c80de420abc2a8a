"""The process of one grammar: compiles it, then says for each sequence which tokens may come next."""

from __future__ import annotations

import json
import mmap
import os
import queue
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, InvalidRequest
from engine.structured.grammar_compile import compile_grammar
from engine.structured.spec import StructuredKind, StructuredOutput
from engine.structured.vocabulary import Vocabulary
from engine.structured.wire import ANSWER, ASK, MAX_SEQUENCES, Answer, Ask, pack, read_frame

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar, GrammarMatcher, TokenizerInfo

_SENT_TOGETHER_S = 0.001  # of answers: each message wakes the engine
_WARM_UP = StructuredOutput(
    StructuredKind.JSON_SCHEMA, '{"type": "object", "properties": {"a": {"type": "string"}}}', ""
)


def serve_grammar(link: socket.socket, masks: int, info: TokenizerInfo, vocabulary: Vocabulary) -> None:
    """Until the engine closes its end: EOFError or OSError. `masks` is the descriptor of the shared ones.

    It compiles in the main thread and says masks in another, so that a grammar whose compilation had to leave
    the processors to others is followed as promptly as any.
    """
    compiled: queue.SimpleQueue[CompiledGrammar] = queue.SimpleQueue()
    server = threading.Thread(target=_serve_masks, args=(compiled, link, masks, vocabulary), daemon=True)
    server.start()  # before: a thread has its maker's niceness
    with suppress(EngineError):
        _compile(
            info, _WARM_UP, vocabulary
        )  # touches what the next one needs: what a fork shares is slow at first
    link.sendall(pack({"pid": os.getpid()}))
    wanted = json.loads(read_frame(link))
    wanted = StructuredOutput(**{**wanted, "kind": StructuredKind(wanted["kind"])})
    try:
        grammar = _compile(info, wanted, vocabulary)
    except InvalidRequest as error:
        link.sendall(pack({"refused": error.message, "param": error.param}))
        return
    link.sendall(pack({"num_bytes": grammar.memory_size_bytes}))
    compiled.put(grammar)
    server.join()


def _serve_masks(
    compiled: queue.SimpleQueue[CompiledGrammar], link: socket.socket, masks: int, vocabulary: Vocabulary
) -> None:
    try:
        _Sequences(compiled.get(), masks, vocabulary).serve(link)
    except (EOFError, OSError, MemoryError):
        pass
    finally:
        os._exit(0)


def _compile(info: TokenizerInfo, wanted: StructuredOutput, vocabulary: Vocabulary) -> CompiledGrammar:
    from xgrammar import GrammarCompiler

    compiler = GrammarCompiler(info, max_threads=1, cache_enabled=False)
    try:
        return compile_grammar(compiler, wanted, vocabulary.vocab_size, vocabulary.eos_token_ids)
    except (MemoryError, RecursionError) as error:
        raise InvalidRequest(
            f"{wanted.param} takes too much memory to compile: simplify it.", param=wanted.param
        ) from error


class _Sequences:
    def __init__(self, grammar: CompiledGrammar, masks: int, vocabulary: Vocabulary) -> None:
        import numpy as np

        words = -(-vocabulary.vocab_size // 32)
        shared = mmap.mmap(masks, MAX_SEQUENCES * words * 4)
        self._masks = np.frombuffer(shared, np.int32).reshape(MAX_SEQUENCES, words)
        self._grammar = grammar
        self._ends_by_itself = not vocabulary.eos_token_ids
        self._matchers: dict[int, GrammarMatcher] = {}

    def serve(self, link: socket.socket) -> None:
        asked = bytearray()
        while True:
            data = link.recv(64 * ASK.size)
            if not data:
                raise EOFError
            asked += data
            whole = len(asked) - len(asked) % ASK.size
            answers, since = bytearray(), time.monotonic()
            for what, row, number, token in ASK.iter_unpack(bytes(asked[:whole])):
                if what == Ask.CLOSE:
                    self._matchers.pop(row, None)
                else:
                    answers += self._answer(what, row, number, token)
                if time.monotonic() - since > _SENT_TOGETHER_S:
                    link.sendall(answers)
                    answers, since = bytearray(), time.monotonic()
            link.sendall(answers)
            del asked[:whole]

    def _answer(self, what: int, row: int, number: int, token: int) -> bytes:
        begun = time.thread_time()
        try:
            answer, has_ended, text = self._follow(what, row, token), False, b""
            has_ended = self._matchers[row].is_terminated()
        except Exception as error:  # foreign code, for one client: it is told
            answer, has_ended, text = Answer.FAILED, False, f"{error}".encode()[:500]
        spent = min(int((time.thread_time() - begun) * 1e6), 2**31 - 1)
        return ANSWER.pack(number, answer, has_ended, spent, len(text)) + text

    def _follow(self, what: int, row: int, token: int) -> Answer:
        from xgrammar import GrammarMatcher

        if what == Ask.OPEN:
            matcher = GrammarMatcher(self._grammar, terminate_without_stop_token=self._ends_by_itself)
            self._matchers[row] = matcher
        else:
            matcher = self._matchers[row]
            if not matcher.accept_token(token):
                raise ValueError(f"token {token} doesn't follow the grammar")
        if matcher.is_terminated():
            return Answer.ANYTHING
        masks: Any = self._masks
        if not matcher.fill_next_token_bitmask(masks, row):
            return Answer.ANYTHING
        if not self._masks[row].any():
            raise ValueError("no token of the model's can go on here")
        return Answer.RESTRICTED
