"""The assembled server: its applications, control routes and the middleware in front of all routes."""
