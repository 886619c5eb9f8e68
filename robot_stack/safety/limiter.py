"""The former name of the motion filter."""

from robot_stack.safety.motion import MotionFilter as SetpointLimiter

__all__ = ["SetpointLimiter"]
