"""OpenAI's API: completions, chat and Responses, whole and as streams."""
