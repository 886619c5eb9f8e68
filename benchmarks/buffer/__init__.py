"""The replay buffer beside LeRobot's and beside a plain ring in memory; see `__main__.py`."""
