"""What of a user's machine must not reach a stage: a launcher's variables, and the user's own settings of other programs."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import MutableMapping
from pathlib import Path

_LAUNCHER = re.compile(
    r"(ACCELERATE|FSDP|DEEPSPEED|MEGATRON_LM|PARALLELISM_CONFIG|TORCHELASTIC|MASTER|PMI|PMIX|OMPI|MV2|MPI|I_MPI|SLURM)_\w+"
    r"|((LOCAL|GROUP|ROLE|NODE|CROSS)_)?(RANK|WORLD_SIZE)|ROLE_NAME|FORK_LAUNCHED"
)
"""Variables by which accelerate, torch and MPI learn that other processes belong to this one."""

_SETTINGS = re.compile(
    r"PYTHON(STARTUP|WARNINGS|OPTIMIZE|INSPECT|BREAKPOINT)|MATPLOTLIBRC|(JUPYTER|IPYTHON|TQDM)\w+|TORCH_LOGS"
    r"|(TRANSFORMERS|DATASETS|HF_HUB)_VERBOSITY|GIT_(DIR|WORK_TREE|INDEX_FILE|COMMON_DIR|OBJECT_DIRECTORY)"
)
"""Variables by which a user's settings would change a page or stop a stage."""


def alone(variables: MutableMapping[str, str]) -> None:
    """Remove what a launcher or a cluster set. A stage is one process; it would wait for others for ever."""
    for name in [name for name in variables if _LAUNCHER.fullmatch(name)]:
        del variables[name]


def folder(root: Path) -> Path:
    """Where the programs that a stage uses keep their settings and caches."""
    return root / "runs" / ".own"


def settle(variables: MutableMapping[str, str], root: Path) -> None:
    """Give this process and its kernels settings of their own, in `folder`, instead of the user's."""
    own = folder(root)
    alone(variables)
    for name in [name for name in variables if _SETTINGS.fullmatch(name)]:
        del variables[name]
    variables.update({"MPLCONFIGDIR": f"{own}/matplotlib", "IPYTHONDIR": f"{own}/ipython"})
    variables.update({f"JUPYTER_{kind}_DIR": f"{own}/jupyter" for kind in ("CONFIG", "DATA", "RUNTIME")})
    variables.update({"MPLBACKEND": "agg", "PYTHONNOUSERSITE": "1", "JUPYTER_PREFER_ENV_PATH": "1"})
    try:
        Path.home()
    except RuntimeError:  # no HOME, and a user without a name, as in a container
        variables["HOME"] = str(own)


def without_addresses() -> None:
    """Leave out jsonschema's check of international addresses: notebooks hold none, and its grammar takes 2 s to build."""
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # an import of it then fails, as jsonschema expects


def check_loopback() -> None:
    """Raise RuntimeError if a process can't reach another one on this machine, as a kernel must be reached."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2], timeout=5):
            pass
    except OSError as error:
        raise RuntimeError(f"127.0.0.1 can't be reached ({error.strerror or error}); it needs a loopback device") from None
