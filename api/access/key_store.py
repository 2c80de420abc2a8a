"""The current API keys: read at the start, and again when their file has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from api.access.keys import Access, ApiKey, KeyRing


@dataclass(frozen=True, slots=True)
class Keys:
    """All API keys. Without admin keys, callers on this machine are admins."""

    inference: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()
    listed: tuple[ApiKey, ...] = ()  # those with names and limits
    shares_caches: bool = False  # whether keys share cached responses and prefixes

    def ring(self, earlier: KeyRing | None = None) -> KeyRing:
        """`earlier`: the ring it replaces, from which keys keep the state of their rate limits."""
        plain = [ApiKey(key, Access.INFERENCE) for key in self.inference]
        plain += [ApiKey(key, Access.ADMIN) for key in self.admin]
        return KeyRing([*plain, *self.listed], earlier, shares_caches=self.shares_caches)


class Watched(Protocol):
    """A file that may change while Berth runs."""

    def mark_read(self) -> None:
        """It is about to be read."""

    def has_changed(self) -> bool:
        """Whether it has changed since. May block."""


class KeyStore:
    """`ring` is replaced as a whole. `read` blocks; if it raises InvalidKeyFile, the keys stay."""

    def __init__(
        self, keys: Keys, file: Watched | None = None, read: Callable[[], Keys] | None = None
    ) -> None:
        """`file`: None if the keys can't change while Berth runs."""
        self.ring = keys.ring()
        self._file = file
        self._read = read

    def reload(self) -> None:
        """Read the file again. Raises InvalidKeyFile."""
        if self._read is not None:
            if self._file is not None:
                self._file.mark_read()
            self.ring = self._read().ring(self.ring)

    def reload_if_changed(self) -> bool:
        """Reload if the file has changed; returns whether it has. An error is raised once per change.

        Blocks.
        """
        if self._file is None or not self._file.has_changed():
            return False
        self.reload()
        return True
