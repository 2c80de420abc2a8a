"""Opens the store that STATE_URL names."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from instance_manager.state.stores.base import DEFAULT_HISTORY, StateStore
from instance_manager.state.stores.errors import InvalidStateUrl, StoreUnavailable
from instance_manager.state.stores.memory import MemoryStore
from instance_manager.state.stores.sqlite import SqliteStore

REDIS_SCHEMES = ("redis", "rediss", "unix")
OWNER_FILE = "berth-id"
_OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}")
DEFAULT_URL = "sqlite:///berth.db"


async def open_store(url: str, state_dir: Path, *, history: int = DEFAULT_HISTORY) -> StateStore:
    """The store that `url` names, ready for use; it keeps the last `history` events.

    `memory://`; `sqlite:///berth.db` (relative to `state_dir`; `sqlite:////var/lib/x.db` is absolute);
    `redis://[user:password@]host:6379/0`, `rediss://…` (TLS), `unix:///path/of/socket`, each optionally with
    `?prefix=` to keep groups of nodes apart. Raises InvalidStateUrl, StoreUnavailable, and StoreInUse if
    another process uses that file.
    """
    check_url(url)
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        return MemoryStore(history=history)
    if scheme in REDIS_SCHEMES:
        # Imported here, so that a state in a file doesn't pay for the Redis client.
        from instance_manager.state.stores.redis import RedisStore

        address, prefix = _redis_url(url)
        return await RedisStore.open(address, prefix=prefix, history=history)
    return await SqliteStore.open(_sqlite_path(url, state_dir), history=history)


def check_url(url: str) -> None:
    """Check that `open_store` supports the URL, for the settings. Raises InvalidStateUrl."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as exc:
        raise InvalidStateUrl(f"STATE_URL isn't a valid URL: {exc}") from None
    if parts.scheme == "memory":
        return
    if parts.scheme == "sqlite":
        if parts.netloc or not parts.path.strip("/"):
            raise InvalidStateUrl(
                f"STATE_URL={url!r} doesn't name a file: use sqlite:///berth.db (relative to STATE_DIR) "
                "or sqlite:////absolute/path.db"
            )
        return
    if parts.scheme in REDIS_SCHEMES:
        return
    raise InvalidStateUrl(
        f"STATE_URL has the unsupported scheme {parts.scheme!r}: use sqlite:///…, memory:// or redis://…"
    )


def owner_id(state_dir: Path) -> str:
    """The name of the node that uses this directory: generated once, the same after every restart.

    Blocks for one small file. Raises StoreUnavailable if it can't be read or written.
    """
    path = state_dir / OWNER_FILE
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = known_owner_id(state_dir)
        if name is None:
            name = secrets.token_hex(8)
            set_owner_id(state_dir, name)
    except OSError as exc:
        raise StoreUnavailable(f"can't store this node's name in {path}: {exc}") from exc
    return name


def known_owner_id(state_dir: Path) -> str | None:
    """The name stored in the directory; None if it is missing or damaged. Raises OSError."""
    try:
        with (state_dir / OWNER_FILE).open("rb") as file:
            name = file.read(100).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    return name if _OWNER.fullmatch(name) else None


def set_owner_id(state_dir: Path, name: str) -> None:
    """Store the name unless it is stored already. Raises OSError."""
    if known_owner_id(state_dir) != name:
        (state_dir / OWNER_FILE).write_text(name, encoding="ascii")


def _sqlite_path(url: str, state_dir: Path) -> Path:
    return state_dir / unquote(urlsplit(url).path[1:])


def _redis_url(url: str) -> tuple[str, str]:
    """The URL for the Redis client, and the prefix, which is our own addition to it."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    prefix = next((value for name, value in query if name == "prefix"), "berth")
    rest = urlencode([item for item in query if item[0] != "prefix"])
    return urlunsplit(parts._replace(query=rest)), prefix
