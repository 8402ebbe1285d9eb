"""``python -m vgg16_xray`` is ``vgg16-xray``."""

import sys


def main() -> None:
    """Load the command line and run it; Ctrl-C before it is loaded ends without a traceback too."""
    try:
        from vgg16_xray.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
