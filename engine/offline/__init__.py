"""A model in a Python program: the server's checks and the engine, without HTTP."""
