"""What a rig says when it cannot."""


class RigError(Exception):
    """The rig itself failed, not what runs in it. The text says what is missing or what was seen."""


class TimedOut(RigError):
    """The time limit passed. The text ends with the tail of the log."""
