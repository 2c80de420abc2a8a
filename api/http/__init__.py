"""What all of the API share: ASGI's types, headers, bodies, errors. Knows nothing of instances."""
