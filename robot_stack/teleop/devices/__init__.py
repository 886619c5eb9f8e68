"""Input devices on the host of the teleop server: each is a `TeleopDevice`, and none is imported before it is used."""
