import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))  # scripts there import each other from there

if os.name != "posix":
    collect_ignore = ["test_fleet.py"]  # that bench asks POSIX what its processes took
