"""``python -m reports`` is ``griffin``: for places where console scripts are not installed."""

from reports.cli import main

main()
