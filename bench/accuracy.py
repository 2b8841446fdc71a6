"""Hold a finished run to a bar: `python -m bench.accuracy RUN ACCURACY`; status 1 below it."""

import sys
from pathlib import Path

from gpuconv import run


def main(folder: str, bar: str) -> None:
    """Evaluate the run's last model on all its test images and compare with the bar."""
    result = run.evaluate(Path(folder), "cpu")
    print(f"{folder}: {result['accuracy']:.4f} on {result['images']} test images, bar {bar}")
    sys.exit(result["accuracy"] < float(bar))


if __name__ == "__main__":
    main(*sys.argv[1:])
