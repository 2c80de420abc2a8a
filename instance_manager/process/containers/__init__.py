"""Engines in containers: the command that starts one, the runtime's program, and what is left of old ones.

A container isn't a descendant of `docker run`, which only shows its output: what ends the program leaves the
container running. It is found by a label, never by its name or a pid alone.
"""
