"""Request bodies: their fields, validation rules and size limits."""
