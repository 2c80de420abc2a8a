"""From a command line to a serving process: flags, a check of what they name, start and end."""
