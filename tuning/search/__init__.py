"""Search strategies: which candidate of a space is worth trying next."""
