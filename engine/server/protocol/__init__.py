"""Request bodies: their fields, the rules that check them, and the caps on all of it."""
