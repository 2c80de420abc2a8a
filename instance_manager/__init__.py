"""The instance manager: starts, watches, expires and stops engine processes. No HTTP server, no torch."""
