"""The embedded engine on a GPU: is it right, how fast is it, and what keeps it from being faster."""
