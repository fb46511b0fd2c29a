"""Run a command and write what it and all that it starts took: CPU seconds, wall time, memory of the largest process.

python tools/measured_process.py RESULT.json COMMAND …

A process of its own, small on purpose: the system counts into a child's peak memory what its parent held when it
started it, so that a large program cannot measure a smaller one that it starts itself.
"""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code, 128 + n where signal n ended it."""
    result, *command = arguments
    started = time.perf_counter()
    process = subprocess.Popen(command)
    # A Ctrl-C on the terminal reaches the command by itself. The command ends first, whatever happens.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    code = process.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken = {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "wall_seconds": round(time.perf_counter() - started, 2),
        "peak_memory_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }
    Path(result).parent.mkdir(parents=True, exist_ok=True)
    Path(result).write_text(json.dumps(taken, indent=2) + "\n", encoding="utf-8")
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
