"""The server put together: applications, routes that steer it, and the gate before all of them."""
