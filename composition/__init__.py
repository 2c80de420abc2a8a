"""Assembles Berth: settings become policies, and the parts one application and one server."""
