"""The operator's seat, measured with real processes: see `__main__.py`."""
