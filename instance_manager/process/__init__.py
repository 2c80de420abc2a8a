"""Engine processes: spawned under a shim, watched, and ended with all their descendants."""
