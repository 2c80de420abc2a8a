"""What models write that isn't plain text: thoughts and tool calls. Pure text, piece by piece."""
