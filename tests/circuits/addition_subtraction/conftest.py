"""Let the tests of this folder import the helpers of the arithmetic ones by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "arithmetic"))
