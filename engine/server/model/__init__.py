"""The served model: chat template, reasoning, context limits, metrics."""
