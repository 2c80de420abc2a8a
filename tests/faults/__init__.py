"""Faults, with the real thing: a real Berth, real sockets, real engines that misbehave. `make faults`."""
