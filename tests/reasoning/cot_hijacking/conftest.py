"""Helpers of this folder: planted models asked with prompts of several lengths."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
