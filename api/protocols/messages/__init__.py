"""Anthropic's Messages API for engines that speak chat completions alone."""
