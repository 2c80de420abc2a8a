"""The parts that models are made of. They know tensors, not requests or batches."""
