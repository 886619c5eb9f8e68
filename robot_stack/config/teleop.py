"""What `robot-stack teleop` is told."""

from __future__ import annotations

from msgspec import field

from robot_stack.core.checked import Checked


class TeleopSettings(Checked, frozen=True, kw_only=True):
    """The page for operators.

    host, port: where browsers reach it; beyond loopback only with tls. host_names: other names by which browsers call
    it. robots: name -> overrides of that robot alone, separated by spaces (`run=shelf network.seat_address=tcp://...`),
    one tab each; none given: the configured one. devices: name -> kind of an input device on this host, or path of a
    JSON file with `kind` and its settings. directory: of its tokens, certificate and audit log.
    max_take_s: how long a person may drive in one episode. min_rate_share: a demonstration whose control steps came
    more slowly than this share of the robot's rate is not kept.
    """

    host: str = "127.0.0.1"
    port: int = 7780
    tls: bool = False
    host_names: tuple[str, ...] = ()
    robots: dict[str, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    directory: str = "runs/teleop"
    camera_rate_hz: float = 15.0
    max_take_s: float = 120.0
    min_rate_share: float = 0.9

    def positive(self) -> tuple[str, ...]:
        return ("camera_rate_hz", "max_take_s", "min_rate_share")

    def max_person_steps(self, control_rate_hz: float) -> int:
        return max(1, round(self.max_take_s * control_rate_hz))
