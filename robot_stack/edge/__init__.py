"""The edge: aligns samples, runs the policy, schedules its chunks, records every step and ships it."""
