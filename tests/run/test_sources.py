"""What source code means: the modules that it imports, and what is left without words."""

import subprocess
import sys
from pathlib import Path

import pytest

from qatlib.run.sources import PipelineError, imported

REPOSITORY = Path(__file__).parents[2]


def test_imported_modules_are_those_that_python_loads(tmp_path: Path) -> None:
    cells = ["%matplotlib inline\nfrom qatlib.studies import deployment\n!ls", "import qatlib.search as s"]
    found = imported(cells, REPOSITORY / "qatlib")
    code = "import sys, qatlib.studies.deployment, qatlib.search\nprint(*(m for m in sys.modules if m.startswith('qatlib.')))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    names = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in found}
    assert {f"{name}.__init__" if f"{name}.__init__" in names else name for name in loaded.stdout.split()} <= names
    assert REPOSITORY / "qatlib/studies/robustness.py" not in found
    with pytest.raises(PipelineError, match="not Python"):
        imported(["import ("], tmp_path)
