"""The charts of a report, as plotly JSON: one module a chart."""
