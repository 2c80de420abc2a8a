"""Running a model: device, weights and KV cache in memory, the runner of one step."""
