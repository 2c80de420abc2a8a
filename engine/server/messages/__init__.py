"""Anthropic's Messages: /v1/messages and its token counter."""
