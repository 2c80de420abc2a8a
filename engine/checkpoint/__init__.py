"""A checkpoint's files: their location, their kind, and their configuration."""
