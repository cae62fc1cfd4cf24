"""Puts this folder on the path, which --import-mode=importlib leaves off it, for ``cases`` and its like."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
