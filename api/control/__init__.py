"""The control plane: instances, models, pulls, metrics and logs over HTTP."""
