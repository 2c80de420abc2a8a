"""The layers that models consist of. They know tensors, not requests or batches."""
