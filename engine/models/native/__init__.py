"""A decoder's small operations on a CPU, compiled for the machine; PyTorch's own are the fallback."""
