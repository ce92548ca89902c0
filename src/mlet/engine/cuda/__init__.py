"""The engine on CUDA devices, in Triton."""
