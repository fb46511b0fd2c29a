"""Says whether a checkpoint is finite and undamaged, in about a second per GB and without importing torch.

python tools/inspect_checkpoint.py runs/sparse_moe_416 --last-clean
"""

import sys

from camox.checkpoints.inspection import main

if __name__ == "__main__":
    sys.exit(main())
