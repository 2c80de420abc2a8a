"""The command line, `berth`. It knows a running Berth by HTTP alone and imports nothing of it."""

VERSION = "0.2.0"
