"""Many clients, more models than fit: a long run of a real Berth, watched from outside. `make soak`."""
