"""Request bodies: their fields, the rules that check them, and the size_limits on all of it."""
