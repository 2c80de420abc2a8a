"""Access log, traces, and tokens counted from what passes."""
