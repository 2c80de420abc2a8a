"""From a validated body to tokens: sampling parameters, constraints, beam search, the service."""
