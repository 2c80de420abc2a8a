"""Models by name: their replicas, queues and scaling, and room made for them."""
