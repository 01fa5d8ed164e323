"""Two checks of the files a commit holds: text ends with exactly one newline (mended), no file is large (refused)."""
import sys
from pathlib import Path

LARGEST = 400_000   # bytes; what is larger belongs into the store or into a release


def main(arguments: list[str]) -> int:
    """Check the files named; 1 when one was mended or is too large."""
    paths, failed = [Path(a) for a in arguments if a != "--size"], 0
    for path in paths:
        data = path.read_bytes()
        if "--size" in arguments:
            if len(data) > LARGEST:
                print(f"{path}: {len(data) // 1000} kB, at most {LARGEST // 1000} kB")
                failed = 1
        elif data and data != data.rstrip(b"\n") + b"\n":
            path.write_bytes(data.rstrip(b"\n") + b"\n")
            print(f"{path}: last line mended")
            failed = 1
    return failed


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
