"""From a command line to a serving process: flags, a check of the checkpoint, start and shutdown."""
