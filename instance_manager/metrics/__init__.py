"""Metrics of requests, lifecycles and state for `/metrics`."""
