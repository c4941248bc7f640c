"""The page of a run: ``report.html`` in its folder. Needs no torch."""
