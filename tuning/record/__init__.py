"""The journal of a run: its records, the file, and its export to the formats of other tools."""
