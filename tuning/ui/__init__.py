"""Commands and displays. Importing a command imports no torch."""
