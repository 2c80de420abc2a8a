"""Where an instance runs."""
