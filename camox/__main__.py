"""`python -m camox` is `camox`."""

import sys

from camox.cli import main

if __name__ == "__main__":
    sys.exit(main())
