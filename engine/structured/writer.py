"""`python -m engine.structured.writer`: writes the grammars of client's schemas, in a process of its own.

It works in Python for up to seconds, which in the engine's process would hold up every stream. A schema
that takes too long or too much memory is refused; the process goes on.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

from engine.errors import InvalidRequest
from engine.structured.grammar_source import write_grammar
from engine.structured.limits import MAX_WRITER_BYTES
from engine.structured.spec import StructuredKind, StructuredOutput

_NICENESS = 10
_OOM_SCORE = "800"  # when memory runs out, the kernel kills it before the engine


class _TooSlow(Exception):
    pass


def main() -> None:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # meant for the engine
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, _on_time_over)
    with suppress(OSError):
        os.nice(_NICENESS)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(_OOM_SCORE)
    with suppress(OSError, ValueError):  # a lower limit is set already
        most = _address_space() + MAX_WRITER_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    gc.collect()
    gc.freeze()  # the modules stay
    for line in sys.stdin:  # ends with the engine
        request = json.loads(line)
        reply = _write(request["wanted"], request["limit_s"])
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def _write(described: dict[str, Any], limit_s: float) -> dict[str, Any]:
    wanted = StructuredOutput(**{**described, "kind": StructuredKind(described["kind"])})
    param = wanted.param
    try:
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        try:
            return {"grammar": write_grammar(wanted)}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except InvalidRequest as error:
        return {"refused": error.message, "param": error.param}
    except _TooSlow:
        why = f"takes longer than {limit_s:g} s to compile: simplify it."
    except MemoryError:
        why = f"takes more than {MAX_WRITER_BYTES >> 20} MiB of memory to compile: simplify it."
    except RecursionError:
        why = "is nested too deep."
    except Exception as error:  # a fault of ours, which this request meets alone
        print(f"{param}: {error!r}", file=sys.stderr, flush=True)  # noqa: T201
        why = f"can't be compiled: {type(error).__name__}."
    return {"refused": f"{param} {why}", "param": param}


def _on_time_over(*_: object) -> NoReturn:
    raise _TooSlow


def _address_space() -> int:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**31


if __name__ == "__main__":
    main()
