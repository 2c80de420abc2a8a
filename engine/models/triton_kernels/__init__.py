"""Our kernels for NVIDIA GPUs, written in Triton, which comes with PyTorch's CUDA build."""
