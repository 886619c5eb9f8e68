# Two commands do all set-up: `make demo` runs the main job, `make test` the tests.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := sim,gymnasium,ros,franka,g1,realsense,fast,vla,cluster,gui,devices,dev
APT_PACKAGES := chromium chromium-driver cyclonedds-dev gcc libegl1 libgl1 libgles2 libhidapi-hidraw0 libosmesa6 libusb-1.0-0 linux-libc-dev python3-dev python3-venv

.PHONY: demo test check bench setup system clean lerobot-env

demo: setup
	$(BIN)/robot-stack demo $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	@for name in simulation storage buffer wire weights faults safety g1_dds cameras control_loop \
			inference chunking inference_load language steering lerobot_inference \
			lerobot_updates learning corrections rewards reset_free image_rl closed_loop; do \
		echo "== $$name"; $(BIN)/python -m benchmarks.$$name --quick || exit 1; done

setup: system $(VENV)/.installed

# torch first and by plain pip: it takes the CPU build where one is offered, and nothing later may pull another.
# cyclonedds 0.10.2, the release that speaks with a G1, is built against Debian's library of the same release, whose
# parts lie in three places: the links bring them under one roof, as its build wants them.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else \
		f"Python 3.11 or 3.12 is needed for the pinned versions, this is {v[0]}.{v[1]}: call make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	mkdir -p $(VENV)/cyclonedds
	ln -sfn /usr/include $(VENV)/cyclonedds/include
	ln -sfn /usr/bin $(VENV)/cyclonedds/bin
	ln -sfn $$(dirname $$(ls -d /usr/lib/*/libddsc.so | head -1)) $(VENV)/cyclonedds/lib
	CYCLONEDDS_HOME=$(CURDIR)/$(VENV)/cyclonedds \
		$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/python -c 'from robot_stack.safety.kernels import compile_all; compile_all()'
	touch $@

# LeRobot's replay buffer, to be measured beside ours by `python -m benchmarks.buffer`. It declares an older torch and
# far more than its buffer needs, hence --no-deps; torch first and by plain pip, as in our own environment.
lerobot-env: .venv-lerobot/.installed

.venv-lerobot/.installed: benchmarks/lerobot-constraints.txt benchmarks/lerobot-policy-constraints.txt
	test -x .venv-lerobot/bin/python || $(PYTHON) -m venv .venv-lerobot
	.venv-lerobot/bin/pip install --quiet --disable-pip-version-check -c benchmarks/lerobot-constraints.txt torch==2.13.0
	.venv-lerobot/bin/pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/lerobot-constraints.txt
	.venv-lerobot/bin/pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/lerobot-policy-constraints.txt
	touch $@

# System packages are installed only where one is missing; without root or sudo the one missing command is printed.
system:
	@missing=""; for package in $(APT_PACKAGES); do \
		dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'install ok installed' || missing="$$missing $$package"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then as=""; elif sudo -n true 2>/dev/null; then as="sudo"; else \
		echo "These system packages are missing. Install them, then call make again:"; \
		echo "  sudo apt-get update && sudo apt-get install -y$$missing"; exit 1; fi; \
	$$as apt-get update -qq && $$as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing

clean:
	rm -rf $(VENV) .venv-lerobot build *.egg-info .mypy_cache .ruff_cache .pytest_cache
