"""Checks every second that the state's files are still in place: they may be deleted while Berth runs."""

from __future__ import annotations

import asyncio
import logging

from instance_manager.state.keeper import StateKeeper
from instance_manager.state.session import StateSession
from instance_manager.state.stores.errors import LeaseLost, StoreError

logger = logging.getLogger("berth.state")

_INTERVAL_S = 1.0


async def watch_files(session: StateSession, keeper: StateKeeper) -> None:
    """Until cancelled, or until another Berth process has taken the state directory."""
    while True:
        await asyncio.sleep(_INTERVAL_S)
        try:
            await session.tend()
            keeper.note_loss(None)
        except LeaseLost as error:
            keeper.depose(str(error))
            return
        except StoreError as error:
            keeper.note_loss(str(error))
        except Exception as error:  # the task's root
            logger.exception("the state files could not be checked")
            keeper.note_loss(repr(error))
