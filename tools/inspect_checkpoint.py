"""Says whether a checkpoint is finite and undamaged, in about a second per GB and without importing torch.

python tools/inspect_checkpoint.py runs/sparse_moe_416 --last-clean
"""

import sys

from camox.checkpoints.inspection import main
from camox.tracking.encoding import spell_out

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        spell_out(stream)
    sys.exit(main())
