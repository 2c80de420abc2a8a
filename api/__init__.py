"""HTTP: the control routes, and the data plane that forwards requests to engines."""
