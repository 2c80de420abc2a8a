"""Models from the hub: pulled and removed by child processes."""
