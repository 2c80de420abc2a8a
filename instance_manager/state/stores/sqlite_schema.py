"""The SQLite schema: the mark of our databases, and the migrations. Data only."""

from __future__ import annotations

APPLICATION_ID = 0x42727468  # "Brth", in the file's header; missing in databases of the first versions

# One entry per version of the schema: the statements that migrate from the version before. Released entries
# are never edited; new ones are added. PRAGMA user_version counts the entries applied to a file.
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

# Each table with the statement that created it, as SQLite keeps it.
TABLES: dict[str, str] = {
    statement.split()[2]: statement
    for statements in MIGRATIONS
    for statement in statements
    if statement.startswith("CREATE TABLE")
}
