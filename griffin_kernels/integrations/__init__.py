"""The kernels inside other libraries' models; each module imports its library, which the package does not depend on."""
