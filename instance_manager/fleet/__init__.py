"""Models by name: their replicas, queues and scaling, and the memory freed for them."""
