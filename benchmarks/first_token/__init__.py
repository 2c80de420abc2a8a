"""The time from a request to its first token, by the state of its model."""
