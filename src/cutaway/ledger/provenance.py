"""Where a number came from: the package's sources, library versions and what the machine can compute with.

No host name, user name or path is looked at.
"""

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("cutaway", "torch", "transformers", "tokenizers", "numpy")


@cache
def code_hash() -> str:
    """sha256 over the package's own ``.py`` files and their names, taken once a process."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of Python, Cutaway and the libraries that decide numbers."""
    found = {
        "python": platform.python_version(),
    }
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@cache
def machine() -> dict[str, str]:
    """Processor architecture, system, vector instructions, native bf16, and the GPU where there is one."""
    import torch

    from cutaway.model.load import native_bf16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else "none",
        "bf16": "native" if native_bf16(device) else "emulated",
    }
