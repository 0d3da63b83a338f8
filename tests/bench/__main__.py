"""Runs what is measured: ``./run bench`` all, ``./run bench NAME ...`` some, ``./run bench --list`` names.

A benchmark is a module ``bench_NAME.py`` of this folder whose ``main()`` prints its figures beside their
aims and returns 0, or 1 when an aim was missed.
"""

import argparse
import importlib
import sys
from pathlib import Path

PREFIX = "bench_"


def names() -> list[str]:
    """What can be measured."""
    return sorted(path.stem.removeprefix(PREFIX) for path in Path(__file__).parent.glob(f"{PREFIX}*.py"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./run bench", description="Measure speed and memory.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of: {', '.join(names())}")
    parser.add_argument("--list", action="store_true", help="only print the names")
    args = parser.parse_args(arguments)
    if args.list:
        sys.stdout.writelines(f"{name}\n" for name in names())
        return 0
    if unknown := set(args.names) - set(names()):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are: {', '.join(names())}")
    missed = [name for name in args.names or names() if measure(name) != 0]
    if missed:
        sys.stderr.write(f"aims missed by: {', '.join(missed)}\n")
    return 1 if missed else 0


def measure(name: str) -> int:
    """Run one; its own exit code."""
    sys.stdout.write(f"-- {name}\n")
    sys.stdout.flush()
    code: int = importlib.import_module(f"{__package__}.{PREFIX}{name}").main()
    return code


if __name__ == "__main__":
    sys.exit(main())
