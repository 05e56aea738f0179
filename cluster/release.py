"""Which Godwit this is."""

from importlib.metadata import PackageNotFoundError, version

try:
    RELEASE = version("godwit")
except PackageNotFoundError:  # run from a checkout that is not installed
    RELEASE = "unknown"
