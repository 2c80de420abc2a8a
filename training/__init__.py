"""Makes the demo model: text generators, tokenizer, training loop. No part of Berth imports it."""
