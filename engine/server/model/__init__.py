"""The model that is served: its template, its reasoning, its context, its metrics."""
