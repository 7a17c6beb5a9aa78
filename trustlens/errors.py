"""The errors that trustlens raises on purpose.

Each message says what was received and what to do about it. The command line catches
:class:`TrustlensError` once, prints it as one line and exits with status 2.
"""


class TrustlensError(Exception):
    """Base of every error that trustlens raises on purpose."""


class UsageError(TrustlensError):
    """The caller passed a name, value or path that cannot be used."""


class RunError(TrustlensError):
    """A run cannot be read: missing, not written by trustlens, damaged, or of a newer schema."""


class MissingDependencyError(TrustlensError):
    """An optional feature was used whose packages are not installed."""

    def __init__(self, feature: str, package: str, extra: str | None = None) -> None:
        remedy = package if extra is None else f"'trustlens-optim[{extra}]'"
        super().__init__(
            f"{feature} needs the package '{package}', which is not installed: pip install {remedy}"
        )
