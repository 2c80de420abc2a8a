"""The SQLite schema: what makes a database ours, and each version of the next. Data only."""

from __future__ import annotations

APPLICATION_ID = 0x42727468  # "Brth", in the file's header; databases of the first versions have none

# One entry per version of the schema: what makes it of the one before. Entries are never edited once
# released; a new one is added. PRAGMA user_version counts those a file has seen.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE records (instance_id TEXT PRIMARY KEY, version INTEGER NOT NULL, body TEXT NOT NULL)",
        "CREATE TABLE events (event_id INTEGER PRIMARY KEY, body TEXT NOT NULL)",
        "CREATE TABLE ports (node TEXT, port INTEGER, instance_id TEXT NOT NULL, PRIMARY KEY (node, port))",
        """CREATE TABLE idempotency (
            key TEXT PRIMARY KEY, instance_id TEXT NOT NULL, fingerprint TEXT NOT NULL,
            expires_at REAL NOT NULL
        )""",
        """CREATE TABLE usage (
            key_id TEXT, model TEXT, requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
            completion_tokens INTEGER NOT NULL, PRIMARY KEY (key_id, model)
        )""",
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    ),
)

# Each table as SQLite keeps the words that made it.
TABLES: dict[str, str] = {
    statement.split()[2]: statement
    for statements in MIGRATIONS
    for statement in statements
    if statement.startswith("CREATE TABLE")
}
