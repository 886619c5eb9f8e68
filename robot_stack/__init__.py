"""robot_stack: a robot-learning stack for real robots. The command line is `robot-stack --help`."""
