"""The service table: complete, consistent with the messages, and default-deny."""

from __future__ import annotations

import typing

import pytest

from robot_stack.core.messages import LearnerRequest, RobotRequest
from robot_stack.core.policy_messages import PolicyRequest
from robot_stack.core.scene_messages import SceneRequest
from robot_stack.transport.keys import Role
from robot_stack.transport.services import SERVICES, Pattern

UNIONS = {
    "robot.request": RobotRequest,
    "learner.request": LearnerRequest,
    "scene.request": SceneRequest,
    "policy.request": PolicyRequest,
}
BOTH_ENDS_ARE_THE_ROBOTS = {"scene.request", "scene.state"}


@pytest.mark.parametrize("name", sorted(UNIONS))
def test_every_request_has_a_role_that_may_send_it_and_no_other_name_is_listed(name: str) -> None:
    listed = set().union(*SERVICES[name].requests.values())
    assert listed == {message.__name__ for message in typing.get_args(UNIONS[name])}


def test_a_viewer_only_watches() -> None:
    assert SERVICES["robot.request"].requests[Role.VIEWER] == {"Hello", "Ping", "GetState", "GetDiagnostics"}
    assert SERVICES["learner.request"].requests[Role.VIEWER] == {"Hello", "GetProgress"}


def test_what_is_not_listed_is_refused() -> None:
    robot = SERVICES["robot.request"]
    assert robot.may_send(Role.OPERATOR, "StopRobot")
    assert robot.may_send(Role.EDGE, "StopRobot")
    assert not robot.may_send(Role.LEARNER, "Ping")
    assert not robot.may_send(Role.OPERATOR, "NoSuchRequest")
    assert not any(SERVICES["robot.state"].may_send(role, "Ping") for role in Role)


def test_the_table_is_consistent() -> None:
    assert len({service.default_port for service in SERVICES.values()}) == len(SERVICES)
    for name, service in SERVICES.items():
        assert service.name == name
        assert service.roles
        assert service.server_role not in service.roles or name in BOTH_ENDS_ARE_THE_ROBOTS
        assert service.link_timeout_s > 0.0
        if service.pattern is Pattern.REQUEST:
            assert service.queue > 0
            assert service.quota_hz > 0.0
            assert service.quota_bytes_per_s >= service.max_message_bytes
            assert service.max_reply_bytes > 0
        else:
            assert service.queue == 0
