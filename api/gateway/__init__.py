"""Requests that name a model: read, given a replica, forwarded; and the answers that are kept."""
