"""Camera processes beside a robot server: their pictures are recorded with every step, and a policy could read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robot_stack.apps.connections import free_network, network_overrides
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.buffer.store import StepStore
from tests.system.conftest import run_cli

SIZE_PX = 256  # of a simulated robot's view cameras


def test_demonstrations_are_recorded_with_pictures_of_a_camera_process(tmp_path: Path) -> None:
    network = free_network()
    overrides = [
        "run=pictures",
        f"runs_directory={tmp_path}",
        *network_overrides(network),
        "robot.lock_step=false",
        "task.demonstrations=1",
        "cameras.front.driver=sim",
        f"cameras.front.width={SIZE_PX}",
        f"cameras.front.height={SIZE_PX}",
        "cameras.front.rate_hz=15",
        f"cameras.front.address={free_network().learner_address}",
    ]
    with Supervisor(tmp_path / "logs", announce=print) as supervisor:
        supervisor.start("robot-server", robot_stack_command("robot-server", *overrides))
        supervisor.start("camera", robot_stack_command("camera", "--name", "front", *overrides))
        done = run_cli("collect", "--connect", *overrides, timeout_s=150.0)
    assert done.returncode == 0, done.stderr[-2000:]
    with StepStore(tmp_path / "pictures" / "demonstrations") as log:
        steps = [step for _, step in log.iterate(0)]
    pictures = [step.observation["observation.images.front"] for step in steps]
    assert all(picture.shape == (SIZE_PX, SIZE_PX, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) > len(pictures) // 3, "the pictures show motion"
    assert all(picture.std() > 5 for picture in pictures), "the pictures show something"
