"""Other protocols on top of OpenAI's API: adapters that translate requests, responses and errors."""
