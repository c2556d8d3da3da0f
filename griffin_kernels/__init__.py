"""griffin-kernels."""
