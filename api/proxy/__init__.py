"""The data plane: forwards requests to engines, over HTTP/1.1 and WebSockets."""
