"""On which devices an instance runs."""
