"""Hold a finished run to a bar: `python -m bench.accuracy RUN ACCURACY`; status 1 below it."""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.exit("accuracy: error: it is a module, to be run as python -m bench.accuracy")

from gpuconv import run
from gpuconv.errors import Error


def main(arguments: list[str]) -> int:
    """Evaluate the run's last model on all its test images and compare with the bar."""
    p = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    p.add_argument("run", type=Path, help="the folder of a run")
    p.add_argument("accuracy", type=float, help="the bar, between 0 and 1")
    o = p.parse_args(arguments)
    try:
        result = run.evaluate(o.run, "cpu")
    except (Error, OSError) as error:
        print(f"accuracy: error: {error}", file=sys.stderr)
        return 1
    print(f"{o.run}: {result['accuracy']:.4f} on {result['images']} test images, bar {o.accuracy}")
    return int(result["accuracy"] < o.accuracy)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
