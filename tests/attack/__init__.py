"""Attacks on a real Berth, each next to another client's stream that must not be disturbed. `make attack`."""
