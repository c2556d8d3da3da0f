"""Registries shown, compared and merged."""
