"""Many clients and more models than fit in memory: a long run of a real Berth. `make soak`."""
