"""What all routes share: errors, ids, tenants, the request log, a client that leaves."""
