"""Ollama's routes that ask no model: they list and describe models, download, rename and delete them."""
