"""Example plug-ins; see docs/plugins.md."""
