"""What must not reach a stage, and what must."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qatlib.params.sections import ROOT
from qatlib.run.surroundings import alone, check_loopback, settle

LAUNCHED = [
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "NODE_RANK",
    "ROLE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_TORCH_DEVICE",
    "FSDP_OFFLOAD_PARAMS",
    "PMI_SIZE",
    "PMI_RANK",
    "PMIX_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "SLURM_NTASKS",
    "FORK_LAUNCHED",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE",
]
SET = [
    "PYTHONSTARTUP",
    "PYTHONWARNINGS",
    "PYTHONOPTIMIZE",
    "MATPLOTLIBRC",
    "IPYTHONDIR",
    "JUPYTER_PATH",
    "JUPYTER_CONFIG_PATH",
    "JUPYTER_NO_CONFIG",
    "TQDM_DISABLE",
    "TRANSFORMERS_VERBOSITY",
    "GIT_DIR",
]
KEPT = [
    "HOME",
    "USER",
    "PATH",
    "HF_HOME",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "LANG",
    "http_proxy",
    "TMPDIR",
    "XRANK",
    "MY_WORLD_SIZE",
    "QATLIB_EXECUTING",
    "GIT_CONFIG_COUNT",
]


def test_nothing_of_a_launcher_is_left_and_nothing_else_goes() -> None:
    variables = dict.fromkeys([*LAUNCHED, *SET, *KEPT], "2")
    alone(variables)
    assert variables.keys() == {*SET, *KEPT}


def test_programs_have_settings_of_their_own(tmp_path: Path) -> None:
    variables = dict.fromkeys([*LAUNCHED, *SET, *KEPT, "MPLBACKEND", "MPLCONFIGDIR"], "theirs")
    settle(variables, tmp_path)
    assert {name for name, value in variables.items() if value == "theirs"} == {*KEPT}
    assert variables["MPLBACKEND"] == "agg" and not [*tmp_path.iterdir()]
    assert all(Path(variables[name]).is_relative_to(tmp_path) for name in ("MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_DATA_DIR"))


def test_no_grammar_of_addresses_is_built_for_notebooks() -> None:
    code = "import sys, qatlib.run.surroundings as s; s.without_addresses(); import nbformat; print(*sys.modules)"
    loaded = {*subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()}
    assert "jsonschema" in loaded and "lark" not in loaded


def test_a_machine_without_loopback_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    check_loopback()

    def unreachable(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1 can't be reached \(Network is unreachable\)"):
        check_loopback()
