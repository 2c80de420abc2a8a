"""Models from the Hugging Face hub: downloaded and deleted by child processes."""
