"""From a request by name to its first token, by the state of its model."""
