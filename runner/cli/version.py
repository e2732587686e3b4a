"""`python -m runner --version [--json]`: the versions of the runner, Python and PyTorch."""

import platform
from collections.abc import Sequence
from importlib import metadata

from runner import __version__
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE

PACKAGES = ("torch", "torchvision", "hydra-core")


def main(argv: Sequence[str]) -> int:
    """Print the versions; read from what is installed, without a wait for torch."""
    versions = {"runner": __version__, "python": platform.python_version(), **dict(map(find_version, PACKAGES))}
    if "--json" in argv:
        print_json(versions)
    else:
        print(", ".join(f"{name} {version}" for name, version in versions.items()))
    return EXIT_DONE


def find_version(package: str) -> tuple[str, str]:
    """Return a package's name and its installed version; `missing` where it is not there."""
    try:
        return package, metadata.version(package)
    except metadata.PackageNotFoundError:
        return package, "missing"
