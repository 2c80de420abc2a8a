"""From logits to tokens: reproducible, per request, whatever else is in the batch."""
