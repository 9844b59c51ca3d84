"""The one exception that bad input ends in."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the object, the value found, the value expected and the fix. Programs print it as one
    line and exit with status 2 (`rmjax.core.program`); everything else that is raised is a defect of rmjax.
    """
