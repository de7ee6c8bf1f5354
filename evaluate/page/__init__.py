"""The page of a run: runs/<run>/report.html, one file that needs no network (write.py)."""
