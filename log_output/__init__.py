"""Outputs for Berth's own log lines: stderr, a file, a syslog server, an OpenTelemetry collector."""
