"""The command line, `berth`. It uses a running Berth through HTTP only and imports nothing of it."""

VERSION = "0.2.0"
