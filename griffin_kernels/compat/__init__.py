"""Other projects' functions, by their own names and arguments, on this package's operations."""
