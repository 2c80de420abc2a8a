"""Access log, traces, and token counts read from responses."""
