"""What colcon and `ros2 launch` look for beside the Python package. Everything else is in pyproject.toml."""

from pathlib import Path
from typing import Any

from setuptools import Distribution, setup


class PlainDistribution(Distribution):
    """colcon reads a package's facts as Python literals, and an object from `requires-python` is none: keep it text."""

    def parse_config_files(self, *arguments: Any, **options: Any) -> None:
        super().parse_config_files(*arguments, **options)
        self.python_requires = self.metadata.python_requires = str(self.python_requires)


setup(
    distclass=PlainDistribution,
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/robot_stack"]),
        ("share/robot_stack", ["package.xml"]),
        ("share/robot_stack/launch", sorted(str(file) for file in Path("launch").glob("*.launch.py"))),
    ],
)
