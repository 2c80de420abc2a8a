"""Who asks, by which key, and which routes of engines a key for requests is good for."""
