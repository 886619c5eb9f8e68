"""Two links of one process talk over real DDS; nothing happens between two calls of `spin`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from std_msgs.msg import Int32, String
from std_srvs.srv import SetBool, Trigger

from robot_stack.core.errors import RobotError, UnreachableError
from robot_stack.transport.ros2.link import Newest, Ros2Link
from robot_stack.transport.ros2.qos import newest_best_effort, newest_reliable

DOMAIN = 100 + os.getpid() % 100
NAMESPACE = f"/link_test_{os.getpid()}"
WAIT_S = 20.0


@pytest.fixture
def links() -> Iterator[tuple[Ros2Link, Ros2Link]]:
    with Ros2Link("near", NAMESPACE, domain_id=DOMAIN) as near, Ros2Link("far", NAMESPACE, domain_id=DOMAIN) as far:
        yield near, far


def publish_until_seen(publisher: object, message: object, near: Ros2Link, newest: Newest) -> None:
    deadline = time.monotonic() + WAIT_S
    count = newest.count
    while newest.count == count:
        assert time.monotonic() < deadline, "nothing arrived"
        publisher.publish(message)
        near.spin(0.01)


@pytest.mark.parametrize("best_effort_publisher", [True, False])
def test_the_newest_message_arrives_from_both_kinds_of_publisher(links, best_effort_publisher):
    near, far = links
    newest = near.subscribe_newest(Int32, "numbers", newest_best_effort())
    qos = newest_best_effort() if best_effort_publisher else newest_reliable()
    publisher = far.node.create_publisher(Int32, "numbers", qos)
    assert newest.received_ns == -1
    before_ns = time.monotonic_ns()
    publish_until_seen(publisher, Int32(data=7), near, newest)
    assert newest.message.data == 7
    assert before_ns < newest.received_ns < time.monotonic_ns()


def test_only_the_newest_of_several_messages_is_kept_and_only_spin_takes_it(links):
    near, far = links
    newest = near.subscribe_newest(Int32, "numbers", newest_reliable())
    publisher = far.node.create_publisher(Int32, "numbers", newest_reliable())
    publish_until_seen(publisher, Int32(data=0), near, newest)
    time.sleep(0.2)
    near.spin()
    count = newest.count
    for number in range(1, 6):
        publisher.publish(Int32(data=number))
    time.sleep(0.2)
    assert newest.count == count, "a message was taken between two calls of spin"
    near.spin()
    assert newest.message.data == 5
    assert newest.count == count + 1


def test_a_cleared_topic_waits_for_a_message_that_is_new(links):
    near, far = links
    newest = near.subscribe_newest(Int32, "numbers", newest_reliable())
    publisher = far.node.create_publisher(Int32, "numbers", newest_reliable())
    publish_until_seen(publisher, Int32(data=1), near, newest)
    newest.clear()
    assert newest.message is None and newest.received_ns == -1
    with pytest.raises(UnreachableError, match=r"'numbers' within 0\.2 s"):
        near.wait_for(newest, "numbers", 0.2)


def serve(link: Ros2Link, stop: threading.Event) -> None:
    while not stop.is_set():
        link.spin(0.01)


def test_a_call_is_answered_and_a_service_that_is_missing_is_named(links):
    near, far = links

    def answer(request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success, response.message = request.data, "switched"
        return response

    far.node.create_service(SetBool, "switch", answer)
    stop = threading.Event()
    server = threading.Thread(target=serve, args=(far, stop))
    server.start()
    try:
        assert near.call(SetBool, "switch", SetBool.Request(data=True), WAIT_S).success
        assert not near.call(SetBool, "switch", SetBool.Request(data=False), WAIT_S).success
    finally:
        stop.set()
        server.join()
    with pytest.raises(UnreachableError, match=f"{NAMESPACE}/nothing"):
        near.call(Trigger, "nothing", Trigger.Request(), 0.2)
    assert not list(near.node.clients), "a call left its client behind"


def test_a_call_that_nobody_answers_ends_in_time(links):
    near, far = links
    far.node.create_service(Trigger, "silent", lambda request, response: response)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=r"did not answer|no ROS 2 service"):
        near.call(Trigger, "silent", Trigger.Request(), 1.0)
    assert time.monotonic() - began < 5.0


def test_a_waiting_spin_returns_with_the_first_message(links):
    near, far = links
    newest = near.subscribe_newest(String, "words", newest_reliable())
    publisher = far.node.create_publisher(String, "words", newest_reliable())
    publish_until_seen(publisher, String(data="x"), near, newest)
    time.sleep(0.1)
    near.spin()
    timer = threading.Timer(0.2, lambda: publisher.publish(String(data="late")))
    timer.start()
    began = time.monotonic()
    near.spin(WAIT_S)
    timer.join()
    assert newest.message.data == "late"
    assert time.monotonic() - began < WAIT_S / 2


def test_an_error_in_a_callback_reaches_the_caller_of_spin(links):
    near, far = links

    def fail(message: Int32) -> None:
        raise RobotError("bad message")

    near.node.create_subscription(Int32, "numbers", fail, newest_reliable())
    publisher = far.node.create_publisher(Int32, "numbers", newest_reliable())
    deadline = time.monotonic() + WAIT_S
    with pytest.raises(RobotError, match="bad message"):
        while time.monotonic() < deadline:
            publisher.publish(Int32(data=1))
            near.spin(0.01)


def test_timers_run_too(links):
    near, _ = links
    fired = []
    near.node.create_timer(0.01, lambda: fired.append(1))
    deadline = time.monotonic() + WAIT_S
    while not fired and time.monotonic() < deadline:
        near.spin(0.01)
    assert fired


def test_other_namespaces_and_domains_are_not_heard(links):
    near, far = links
    newest = near.subscribe_newest(Int32, "numbers", newest_reliable())
    with (
        Ros2Link("stranger", NAMESPACE + "_other", domain_id=DOMAIN) as namespace,
        Ros2Link("foreigner", NAMESPACE, domain_id=DOMAIN - 1) as domain,
    ):
        strangers = [link.node.create_publisher(Int32, "numbers", newest_reliable()) for link in (namespace, domain)]
        publisher = far.node.create_publisher(Int32, "numbers", newest_reliable())
        for _ in range(10):
            for stranger in strangers:
                stranger.publish(Int32(data=-1))
            publish_until_seen(publisher, Int32(data=1), near, newest)
            assert newest.message.data == 1


def test_a_closed_link_says_so_and_can_be_opened_again():
    link = Ros2Link("near", NAMESPACE, domain_id=DOMAIN)
    link.close()
    with pytest.raises(RobotError, match="'near' is not open"):
        link.spin()
    link.open()
    link.open()
    link.close()
    link.open()
    link.spin()
    link.close()
