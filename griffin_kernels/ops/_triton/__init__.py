"""What the Triton kernels of several ops share: arguments in bundles, strides, products, scans. Not an op."""
