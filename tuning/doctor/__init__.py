"""``griffin tune doctor``: checks of the installation, the machine and its registries."""
