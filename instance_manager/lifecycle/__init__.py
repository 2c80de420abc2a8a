"""One instance from its creation to its end: states, supervision, leases, ports, sleep."""
