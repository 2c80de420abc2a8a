"""Parsers of reasoning and tool calls in the models' output. They read plain text, piece by piece."""
