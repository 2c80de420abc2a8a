"""STATE_URL to a store."""

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
    """The store that `url` names, ready for use; `history` is how many events it keeps.

    `memory://`; `sqlite:///berth.db` (a relative path counts from `state_dir`, `sqlite:////var/lib/x.db` is
    absolute); `redis://[user:password@]host:6379/0`, `rediss://…` (TLS), `unix:///path/of/socket`, each with
    `?prefix=` for the keys of one of several groups of Berths. Raises InvalidStateUrl, StoreUnavailable, and
    StoreInUse if another Berth works in that file.
    """
    check_url(url)
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        return MemoryStore(history=history)
    if scheme in REDIS_SCHEMES:
        # Imported here: whoever keeps the state in a file does not pay for Redis's client.
        from instance_manager.state.stores.redis import RedisStore

        address, prefix = _redis_url(url)
        return await RedisStore.open(address, prefix=prefix, history=history)
    return await SqliteStore.open(_sqlite_path(url, state_dir), history=history)


def check_url(url: str) -> None:
    """Whether `open_store` knows what to do with it; for settings. Raises InvalidStateUrl."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as exc:
        raise InvalidStateUrl(f"STATE_URL is no URL: {exc}") from None
    if parts.scheme == "memory":
        return
    if parts.scheme == "sqlite":
        if parts.netloc or not parts.path.strip("/"):
            raise InvalidStateUrl(
                f"STATE_URL={url!r} names no file: write sqlite:///berth.db (relative to STATE_DIR) "
                "or sqlite:////absolute/path.db"
            )
        return
    if parts.scheme in REDIS_SCHEMES:
        return
    raise InvalidStateUrl(
        f"STATE_URL begins with {parts.scheme or 'nothing'!r}: use sqlite:///…, memory:// or redis://…"
    )


def owner_id(state_dir: Path) -> str:
    """The name of the Berth that works in this directory: made once, the same after every restart.

    Blocks for one small file. Raises StoreUnavailable if it can be neither read nor written.
    """
    path = state_dir / OWNER_FILE
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = known_owner_id(state_dir)
        if name is None:
            name = secrets.token_hex(8)
            set_owner_id(state_dir, name)
    except OSError as exc:
        raise StoreUnavailable(f"can't keep this Berth's name in {path}: {exc}") from exc
    return name


def known_owner_id(state_dir: Path) -> str | None:
    """The name that the directory has; None where it has none, or one that is damaged. Raises OSError."""
    try:
        with (state_dir / OWNER_FILE).open("rb") as file:
            name = file.read(100).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    return name if _OWNER.fullmatch(name) else None


def set_owner_id(state_dir: Path, name: str) -> None:
    """Write it down, unless it stands there already. Raises OSError."""
    if known_owner_id(state_dir) != name:
        (state_dir / OWNER_FILE).write_text(name, encoding="ascii")


def _sqlite_path(url: str, state_dir: Path) -> Path:
    return state_dir / unquote(urlsplit(url).path[1:])


def _redis_url(url: str) -> tuple[str, str]:
    """The URL as Redis's client knows it, and our own part of it: the prefix."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    prefix = next((value for name, value in query if name == "prefix"), "berth")
    rest = urlencode([item for item in query if item[0] != "prefix"])
    return urlunsplit(parts._replace(query=rest)), prefix
