"""OpenAI's chat completions for engines that speak completions alone."""
