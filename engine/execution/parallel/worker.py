"""The process of a rank above 0: `python -m engine.execution.parallel.worker FD ADAPTERS_FD [CPUS]`.

Does what rank 0 says, until it says nothing more. Imports torch only once the process is prepared.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from threading import Thread
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.execution.allocator import keep_few_kernels, keep_freed_memory, use_huge_pages

if TYPE_CHECKING:
    from engine.execution.parallel.messages import AdapterMessage, RankPlan
    from engine.execution.parallel.rank import Rank

log = logging.getLogger("engine")


def main(connection: Connection, adapters: Connection, cpus: str | None) -> int:
    """`adapters`: a connection for reading adapters beside the steps. Returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: rank 0 decides when to end
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_with_rank_0, daemon=True).start()
    if cpus is not None:
        os.sched_setaffinity(0, map(int, cpus.split(",")))
    keep_freed_memory()
    use_huge_pages()
    keep_few_kernels()
    plan = connection.recv()  # imports torch
    logging.basicConfig(
        level=plan.log_level,
        format=f"%(asctime)s %(levelname)s %(name)s: rank {plan.rank}: %(message)s",
    )
    try:
        _serve(connection, adapters, plan)
    except EngineError as error:  # written for people
        connection.send((False, error))
    except EOFError:
        return 0  # rank 0 has closed the connection
    except Exception as error:  # any error must reach rank 0
        log.exception("This rank has failed.")
        connection.send((False, EngineError(f"{type(error).__name__}: {error}")))
    return 1


def _serve(connection: Connection, adapters: Connection, plan: RankPlan) -> None:
    """An error in a step ends the process, as the ranks are then no longer in step."""
    from engine.execution.parallel.messages import Run, Score
    from engine.execution.parallel.rank import Rank

    rank = Rank(plan)
    Thread(target=_read_adapters, args=(adapters, rank), name="adapters", daemon=True).start()
    connection.send((True, None))
    while True:
        message = connection.recv()
        if isinstance(message, Run | Score):
            rank.obey(message)
            continue
        try:
            answer = True, rank.obey(message)
        except EngineError as error:
            answer = False, error
        connection.send(answer)


def _read_adapters(connection: Connection, rank: Rank) -> None:
    """A thread's whole life."""
    with suppress(EOFError, OSError):  # rank 0 has closed the connection
        while True:
            message: AdapterMessage = connection.recv()
            try:
                if message.directory is None:
                    rank.drop_adapter(message.key)
                else:
                    rank.read_adapter(message.key, message.name, message.directory)
                answer: tuple[bool, EngineError | None] = True, None
            except EngineError as error:
                answer = False, error
            except Exception as error:  # any error belongs to who asked
                log.exception("An adapter can't be read.")
                answer = False, EngineError(f"{type(error).__name__}: {error}")
            connection.send(answer)


def _end_with_rank_0() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    connections = (Connection(int(number)) for number in sys.argv[1:3])
    status = main(*connections, sys.argv[3] if len(sys.argv) > 3 else None)
    sys.stderr.flush()
    os._exit(status)  # without the destructors of torch.distributed, which abort
