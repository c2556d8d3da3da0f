"""One case: the order in which candidates are tried, the race of the best, the verdict."""
