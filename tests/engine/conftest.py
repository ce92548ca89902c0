"""Without a GPU, Triton's interpreter runs the CUDA kernels; it must be asked before they load."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
