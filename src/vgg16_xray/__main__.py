"""``python -m vgg16_xray`` is ``vgg16-xray``."""

from vgg16_xray.cli import main

if __name__ == "__main__":
    main()
