"""OpenAI's Responses API for engines that speak chat completions alone."""
