"""Shared by all routes: errors, ids, tenants, the request log, client disconnects."""
