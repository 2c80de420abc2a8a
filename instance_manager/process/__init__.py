"""Engine processes: spawned under a shim, watched, ended with all their children."""
