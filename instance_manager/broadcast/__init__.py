"""One writer, many readers: a ring of recent items, and a notification without content."""
