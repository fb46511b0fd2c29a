"""Run by `accelerate launch`: trains as camox/train.py does, but does not wait a minute for a slow file system."""

import sys

from camox.train import main
from camox.training import sharing

if __name__ == "__main__":
    sharing._PATIENCE = 1.0
    sys.exit(main(sys.argv[1:]))
