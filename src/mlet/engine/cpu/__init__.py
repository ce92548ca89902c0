"""The engine on CPUs, in Numba."""
