"""The data plane: a request to an engine and its answer back, over HTTP/1.1 and WebSockets."""
