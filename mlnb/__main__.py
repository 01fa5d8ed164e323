"""`python -m mlnb` is the command `mlnb`."""
import sys


def main() -> int:
    """Run the command line in `sys.argv` and return its exit code."""
    from mlnb.cli import main as run
    return run(sys.argv[1:])


if __name__ == "__main__": sys.exit(main())
