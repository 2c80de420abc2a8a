"""Fault injection with a real Berth, real sockets and real engines that misbehave. `make faults`."""
