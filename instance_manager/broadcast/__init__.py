"""One event for many listeners: a ring of what was last said, and a wake-up call."""
