"""Other ways to ask for what OpenAI's API gives: adapters that translate requests, answers and errors."""
