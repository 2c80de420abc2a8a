"""A decoder's small operations on a CPU, compiled for the machine; where that can't be, PyTorch's own do."""
