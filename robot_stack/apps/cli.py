"""The `robot-stack` command. Every subcommand takes hydra overrides: `robot=franka task=peg_insertion run=mine`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from robot_stack.core.errors import RobotStackError

EPILOG = """\
Configuration is given as KEY=VALUE, after the options. The groups choose a whole block, the rest single values:

  robot=franka|g1|stretch|gymnasium|gym_pusht|gym_hil   backend=sim|ros2|dds|fci|body
  task=peg_insertion|pick_cube|touch_block|g1_bimanual_lift|stretch_reach_grasp|pusht|panda_pick_cube
  policy=diffusion|unet|flow|vla   algorithm=residual_td3
  run=NAME           name of the run; everything of it is kept in runs/NAME
  learner.target_steps=5000   evaluation.episodes=50   edge.max_lead_steps=0   ...

`robot-stack config` prints all keys with their present values. A run is used by naming it: run=NAME.
"""


@dataclass(frozen=True, slots=True)
class _Subcommand:
    summary: str
    details: str
    run: Callable[[argparse.Namespace], int]


def _demo(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.demo import run_demo

    return run_demo(arguments.overrides, quick=arguments.quick)


def _config(arguments: argparse.Namespace) -> int:
    import msgspec

    from robot_stack.config.compose import compose_config

    config = compose_config(arguments.overrides)
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(config), indent=2).decode() + "\n")
    return 0


def _robot_server(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.build import build_safe_state
    from robot_stack.apps.keeper import keep_robot_server
    from robot_stack.apps.process import Lifetime
    from robot_stack.apps.robot_server import run_robot_server
    from robot_stack.config.compose import compose_config

    config = compose_config(arguments.overrides)
    with Lifetime() as life:
        safe_state = None if arguments.unkept else build_safe_state(config)
        if safe_state is not None:
            return keep_robot_server(safe_state, arguments.overrides, life.running)
        run_robot_server(config, life.running)
    return 0


def _vendor_sim(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.process import Lifetime
    from robot_stack.apps.vendor_sim import run_vendor_sim
    from robot_stack.config.compose import compose_config

    with Lifetime() as life:
        run_vendor_sim(compose_config(arguments.overrides), life.running)
    return 0


def _camera(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.cameras import run_camera_process
    from robot_stack.apps.process import Lifetime
    from robot_stack.config.compose import compose_config

    with Lifetime() as life:
        run_camera_process(compose_config(arguments.overrides), arguments.name, life.running)
    return 0


def _ros2_node(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.keys import ensure_keys
    from robot_stack.apps.layout import RunLayout
    from robot_stack.apps.process import Lifetime
    from robot_stack.apps.ros2_node import run_ros2_node
    from robot_stack.config.compose import compose_config

    config = compose_config(arguments.overrides)
    keys = ensure_keys(RunLayout.of(config))
    with Lifetime() as life:
        run_ros2_node(config.network, keys, config.ros2_node, life.running)
    return 0


def _edge(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.edge import run_edge
    from robot_stack.apps.process import Lifetime
    from robot_stack.config.compose import compose_config

    with Lifetime() as life:
        run_edge(compose_config(arguments.overrides), life.running, life.sleep)
    return 0


def _policy_server(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.policy_server import run_policy_server
    from robot_stack.apps.process import Lifetime
    from robot_stack.config.compose import compose_config

    with Lifetime() as life:
        run_policy_server(compose_config(arguments.overrides), life.running)
    return 0


def _learner(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.learner import run_learner
    from robot_stack.apps.process import Lifetime
    from robot_stack.config.compose import compose_config

    with Lifetime() as life:
        run_learner(compose_config(arguments.overrides), life.running)
    return 0


def _cluster(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.cluster import practise_on_cluster

    return practise_on_cluster(arguments.overrides)


def _teleop(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.process import Lifetime
    from robot_stack.apps.teleop import run_teleop

    with Lifetime() as life:
        run_teleop(arguments.overrides, life.running, life.sleep)
    return 0


def _collect(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.collect import collect
    from robot_stack.apps.demonstrate import demonstrate
    from robot_stack.apps.layout import RunLayout
    from robot_stack.apps.local_robot import local_robot_server
    from robot_stack.apps.process import Lifetime
    from robot_stack.config.compose import compose_config

    config = compose_config(arguments.overrides)
    overrides = list(arguments.overrides)
    if config.device:
        overrides.append("robot.lock_step=false")  # a person needs the wall clock
        config = compose_config(overrides)
    RunLayout.of(config).remember(config)
    with Lifetime() as life, local_robot_server(config, overrides, arguments.connect) as network:
        if config.device:
            done = demonstrate(config, overrides, network, life.running, life.sleep)
        else:
            done = collect(config, network, life.running)
    sys.stdout.write(f"{done.kept} demonstrations kept of {done.attempts} attempts\n")
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.layout import RunLayout
    from robot_stack.apps.process import Lifetime
    from robot_stack.apps.train import train
    from robot_stack.config.compose import compose_config

    config = compose_config(arguments.overrides)
    RunLayout.of(config).remember(config)
    with Lifetime() as life:
        policy = train(config, life.running, arguments.overrides)
    sys.stdout.write(f"policy '{policy.spec.name}' is in {RunLayout.of(config).policy}\n")
    return 0


def _accelerate(arguments: argparse.Namespace) -> int:
    from policies.generative.config import SolverConfig
    from robot_stack.apps.accelerate import accelerate, schedule_path
    from robot_stack.apps.layout import RunLayout
    from robot_stack.config.compose import compose_config

    config = compose_config(arguments.overrides)
    solver = SolverConfig(kind=arguments.solver, steps=arguments.steps) if arguments.solver else None
    policy = accelerate(config, arguments.method, arguments.budget, solver=solver, observations=arguments.observations)
    schedule = policy.config.schedule
    if schedule is not None:
        share = schedule.block_calls / (len(schedule.blocks) * schedule.calls)
        sys.stdout.write(f"{share:.0%} of the blocks are computed; see {schedule_path(RunLayout.of(config))}\n")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.demo import report_on
    from robot_stack.apps.evaluate import run_worker
    from robot_stack.apps.process import Lifetime
    from robot_stack.config.compose import compose_config

    config = compose_config(arguments.overrides)
    if arguments.worker is not None:
        run_worker(config, arguments.overrides, arguments.worker)
        return 0
    with Lifetime() as life:
        report_on(config, arguments.overrides, life.running)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.status import print_status
    from robot_stack.config.compose import compose_config

    return print_status(compose_config(arguments.overrides))


def _operate(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.operate import operate
    from robot_stack.config.compose import compose_config

    return operate(compose_config(arguments.overrides), arguments.action)


def _keys(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.key_commands import run_keys

    return run_keys(arguments)


def _data(arguments: argparse.Namespace) -> int:
    from robot_stack.apps.data_commands import run_data
    from robot_stack.apps.layout import RunLayout
    from robot_stack.config.compose import compose_config

    layout = RunLayout.of(compose_config(arguments.overrides))
    directory = layout.demonstrations if arguments.demonstrations else layout.steps
    return run_data(directory, arguments.action, arguments.first_step)


OPERATE_ACTIONS = ("activate", "deactivate", "clear-fault", "stop", "release", "emergency-stop")

ACCELERATE_METHODS = ("adaptive", "adaptive_no_union", "uniform", "teacache", "deepcache")
SOLVERS = ("ddpm", "ddim", "dpmpp", "euler", "heun")

SUBCOMMANDS: dict[str, _Subcommand] = {
    "demo": _Subcommand(
        "the whole loop on this machine: collect, train, practise, evaluate, report",
        "Collects demonstrations, trains a base policy, starts robot server, edge node and learner as three processes, "
        "improves the policy by residual RL, evaluates before and after on the same held-out episodes and writes "
        "runs/NAME/report.html and result.json. Ctrl-C stops it; the same command goes on where it stopped.",
        _demo,
    ),
    "robot-server": _Subcommand(
        "own one robot and serve it to the edge",
        "Runs the driver loop behind the safety filter. The simulated Franka is the default. Ctrl-C stops the robot "
        "and ends. With a vendor's interface (backend=ros2 or dds) a keeper process beside it makes the vendor's side "
        "safe if it dies.",
        _robot_server,
    ),
    "vendor-sim": _Subcommand(
        "simulate the vendor's side of a robot: its exact interface, with physics behind it",
        "For backend=ros2 (franka, stretch) and backend=dds (g1) with vendor=simulated. Start a robot server with the "
        "same configuration beside it.",
        _vendor_sim,
    ),
    "camera": _Subcommand(
        "own one camera and publish its newest fresh picture",
        "The name is that of a configured camera: cameras.NAME.driver=realsense cameras.NAME.serial=1234. One that "
        "hangs ends the process, so that whoever supervises it starts it again.",
        _camera,
    ),
    "ros2-node": _Subcommand(
        "show a robot server to ROS 2: rviz2, rosbag2, Foxglove, the ros2 command line",
        "A lifecycle node beside the robot server, in a process of its own: nothing in ROS can hold up the control "
        "loop.",
        _ros2_node,
    ),
    "edge": _Subcommand(
        "run the policy on the robot, record every step and ship it to the learner",
        "Needs a running robot server and the run's trained policy. Steps are kept in a spool on this machine until "
        "the learner has acknowledged them.",
        _edge,
    ),
    "policy-server": _Subcommand(
        "compute the policy's chunks for the edges of several robots",
        "One process on one GPU or CPU. Edges with edge.inference=server ask it; what they ask for at the same time is "
        "computed as one batch where that is faster.",
        _policy_server,
    ),
    "learner": _Subcommand(
        "store the steps, improve the policy, publish weights",
        "Needs the run's demonstrations and trained policy. Continues from the run's folder after any stop.",
        _learner,
    ),
    "teleop": _Subcommand(
        "serve the page in the browser: watch, take over, rewind, correct, label, stop",
        "Shows the robots of running edges (edge.operator=seat). The first start makes tokens and prints them once. "
        "See docs/teleoperation.md.",
        _teleop,
    ),
    "cluster": _Subcommand(
        "practise on the machines of a Ray cluster: robots where they are, the learner on several nodes",
        "Needs the run's demonstrations and trained policy, and a running cluster (ray start --head). Robots are "
        "custom resources of their nodes. See docs/cluster.md.",
        _cluster,
    ),
    "collect": _Subcommand(
        "collect demonstrations: by the task's scripted expert, or by a person at the page (device=page)",
        "Starts a simulated robot server for itself, or uses a running one with --connect. With device=... it serves "
        "the operator's page, too: see docs/teleoperation.md.",
        _collect,
    ),
    "train": _Subcommand(
        "train the base policy on the run's demonstrations",
        "Imitation by a diffusion or flow policy, chosen with policy=... Ctrl-C stops it; the same command goes on "
        "from the last checkpoint. What it measures is in runs/NAME/training.jsonl.",
        _train,
    ),
    "accelerate": _Subcommand(
        "make the run's policy faster: which parts of its network are computed at which step of the solver",
        "Looks at demonstrations, and keeps what it finds beside the policy, which runs with it from then on. Remove "
        "runs/NAME/acceleration to undo it. Evaluate again afterwards.",
        _accelerate,
    ),
    "evaluate": _Subcommand(
        "measure success on held-out episodes, base and improved policy on the same seeds",
        "Starts simulated robot servers of its own, runs the episodes in parallel and writes the run's report.",
        _evaluate,
    ),
    "status": _Subcommand(
        "show what robot server and learner of a run are doing",
        "Asks both and prints their answers in words; says which of them cannot be reached.",
        _status,
    ),
    "operate": _Subcommand(
        "activate, deactivate or stop the robot by hand, or clear its fault",
        "Uses the operator's key. Look at the robot before you activate it or clear a fault. `stop` ramps to rest and "
        "holds; `release` also gives authority back; `emergency-stop` asks for the vendor's own hard stop "
        "and latches a fault. None of them is a certified safety function: keep the hardware emergency stop.",
        _operate,
    ),
    "keys": _Subcommand(
        "make, list and revoke the CURVE keys of a run",
        "Every connection is encrypted, and only keys on the list may connect. Roles: robot, edge, operator, viewer, "
        "learner, policy.",
        _keys,
    ),
    "data": _Subcommand(
        "list, check and look after the recorded steps of a run",
        "`list` and `verify` work beside a running learner; stop it for `rebuild` (make the catalog of sealed episodes "
        "anew), `pin` and `unpin` (keep an episode whatever retention says, named by its first step).",
        _data,
    ),
    "config": _Subcommand(
        "print the configuration that the given overrides lead to", "Nothing is started or written.", _config
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robot-stack",
        description="Robots act at the edge, people correct them, a learner elsewhere improves them, and nothing that "
        "was acknowledged is ever lost.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, subcommand in SUBCOMMANDS.items():
        one = commands.add_parser(
            name,
            help=subcommand.summary,
            description=subcommand.details,
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.add_argument("--verbose", action="store_true", help="log more")
        if name == "demo":
            one.add_argument("--quick", action="store_true", help="the whole loop, small: about a minute")
        if name == "robot-server":
            one.add_argument("--unkept", action="store_true", help=argparse.SUPPRESS)
        if name == "evaluate":
            one.add_argument("--worker", type=int, default=None, help=argparse.SUPPRESS)
        if name == "accelerate":
            one.add_argument("--method", choices=ACCELERATE_METHODS, default="adaptive", help="how calls are chosen")
            one.add_argument("--budget", type=int, default=5, metavar="N", help="calls of each block (default: 5)")
            one.add_argument("--solver", choices=SOLVERS, default="", help="another solver than the policy's own")
            one.add_argument("--steps", type=int, default=10, metavar="N", help="steps of that solver (default: 10)")
            one.add_argument("--observations", type=int, default=8, metavar="N", help="to look at (default: 8)")
        if name == "collect":
            one.add_argument("--connect", action="store_true", help="use the robot server that is already running")
        if name == "operate":
            one.add_argument("action", choices=OPERATE_ACTIONS, help="what to do")
        if name == "data":
            one.add_argument("action", choices=("list", "verify", "rebuild", "pin", "unpin"), help="what to do")
            one.add_argument("--demonstrations", action="store_true", help="of the demonstrations, not of the practice")
            one.add_argument("--first-step", type=int, default=-1, metavar="N", help="which episode (pin, unpin)")
        if name == "camera":
            one.add_argument("--name", required=True, help="name of the camera")
        if name == "keys":
            one.add_argument("action", choices=("make", "list", "revoke"), help="what to do")
            one.add_argument("name", nargs="?", default="", help="name of the key (make, revoke)")
            one.add_argument("--role", default="viewer", help="role of a new key (default: viewer)")
        one.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="configuration, see below")
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options and overrides may stand in any order, which argparse alone does not allow."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown:
        parser.error(f"what is '{unknown[0]}'? Options are listed by --help, configuration is KEY=VALUE")
    arguments.overrides = [*arguments.overrides, *rest]
    if arguments.command == "keys" and "=" in arguments.name:
        arguments.overrides, arguments.name = [arguments.name, *arguments.overrides], ""
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit code says which kind of error ended it (see robot_stack.core.errors)."""
    arguments = _parse(argv)
    from robot_stack.apps.process import fail, set_up_logging

    set_up_logging(arguments.verbose)
    try:
        return SUBCOMMANDS[arguments.command].run(arguments)
    except RobotStackError as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
