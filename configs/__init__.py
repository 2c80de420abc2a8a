"""Settings from the environment and .env, read once, checked and frozen. Imports nothing of Berth's."""
