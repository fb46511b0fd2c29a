"""Run by `accelerate launch` in two processes: trains as camox/train.py does, process 1 with a setting of its own.

Arguments: the setting, then those of camox/train.py.
"""

import os
import sys

from camox.train import main

if __name__ == "__main__":
    sys.exit(main([*sys.argv[2:], sys.argv[1]] if os.environ["RANK"] == "1" else sys.argv[2:]))
