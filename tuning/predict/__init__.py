"""Tuning for a GPU that is not there: launches described and compiled, their times predicted, the best chosen."""
