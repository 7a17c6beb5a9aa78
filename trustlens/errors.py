"""Exceptions of trustlens.

Each message says what was received and what to do. The command line catches
:class:`TrustlensError`, prints its message as one line and exits with status 2.
"""


class TrustlensError(Exception):
    """Base class of the exceptions of trustlens."""


class UsageError(TrustlensError):
    """An argument is invalid: a name, value or path that cannot be used."""


class RunError(TrustlensError):
    """A run cannot be read: it is missing, damaged, in a newer format or not from trustlens."""


class MissingDependencyError(TrustlensError):
    """A feature needs a package that is not installed."""

    def __init__(self, feature: str, package: str, extra: str | None = None) -> None:
        remedy = package if extra is None else f"'trustlens-optim[{extra}]'"
        super().__init__(
            f"{feature} needs the package '{package}', which is not installed: pip install {remedy}"
        )
