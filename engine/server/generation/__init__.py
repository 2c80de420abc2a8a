"""From a checked body to tokens: sampling parameters, constraints, beams, the service."""
