"""How a command ends: exit codes that a restart loop can rely on, and what raises them.

0: done.  2: a user's mistake, or a full or read-only disk: do not restart before it is mended.  3: does not fit.
70: stopped by a numerical fault that a restart would repeat: do not restart.  75: told to stop, and saved: the same
command goes on.  Anything else: a crash, or a hang that the watchdog ended (1): restart.
"""

USER_ERROR = 2
DOES_NOT_FIT = 3
NUMERICAL_FAULT = 70
PREEMPTED = 75


class NumericalFaultError(Exception):
    """The numbers are wrong in a way that a restart would repeat."""


class Preempted(BaseException):
    """A signal asked the run to stop; like KeyboardInterrupt nothing on the way may take it for an error."""
