"""The charts of a report, as plotly JSON."""
