"""Where Berth's own log lines go: stderr, a file, a syslog server, an OpenTelemetry collector."""
