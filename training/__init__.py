"""How the demo model is made: text generators, tokenizer, training loop. Nothing of Berth imports it."""
