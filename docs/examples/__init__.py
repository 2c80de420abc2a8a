"""Plug-ins to start from; docs/plugins.md tells about them."""
