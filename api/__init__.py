"""HTTP to domain and back: the control routes, and the data plane that forwards to engines."""
