"""The control plane: HTTP routes for instances, models, pulls, metrics and logs."""
