"""A checkpoint's files: where they lie, what kind they are, what their configuration says."""
