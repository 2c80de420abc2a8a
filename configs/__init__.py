"""Settings from the environment and .env, read once, checked and frozen. Imports no other package."""
