"""Attacks on a real Berth, each beside a stream of somebody else's that must not notice. `make attack`."""
