"""What is counted of requests, lifecycles and state, as `/metrics` has it."""
