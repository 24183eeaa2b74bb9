"""What leaves the machine with a report says nothing of its owner: no home, no user's name, no absolute path."""

from __future__ import annotations

import getpass
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from qatlib.files import write_atomic
from qatlib.params.sections import ROOT

_ABSOLUTE = re.compile(r"""(?<![\w./…-])/(?:[^\s/,\]"']+/)*([^\s/,\]"']+)""")
_QUOTED = re.compile(r"""(["'])((?:\w+:)?)/(?!/)[^"']*?([^/"']+)/?\1""")
_WHOLE = re.compile(r"((?:\w+:)?)/(?!/).*?([^/]+)/?")
_HOME = "/~"
"""The home in a text whose absolute paths are still to be cut."""


def portable(text: str, root: Path = ROOT) -> str:
    """`text` with paths under `root` made relative to it. Other absolute paths are cut to the file's name."""
    text = _known(text, root)
    if user := _user():
        text = re.sub(rf"(?<=/){re.escape(user)}(?=/)", "…", text)
    return _ABSOLUTE.sub(r"…/\1", _QUOTED.sub(r"\1\2…/\3\1", text))


def portable_values(value: Any, root: Path = ROOT) -> Any:
    """JSON with every text in it `portable`. A text that is one absolute path is cut whole, with its blanks."""
    if isinstance(value, dict):
        return {key: portable_values(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [portable_values(item, root) for item in value]
    if not isinstance(value, str):
        return value
    whole = _WHOLE.fullmatch(known := _known(value, root))
    return f"{whole[1]}…/{whole[2]}" if whole else portable(known, root)


def make_portable(notebook: Path, root: Path = ROOT) -> None:
    """Remove what is of the machine from a notebook that papermill wrote: in parameters, file locations and outputs."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    about = content["metadata"]["papermill"]
    about |= {"input_path": f"notebooks/{notebook.parent.name}.ipynb", "output_path": "executed.ipynb"}
    about["parameters"] = portable_values(about["parameters"], root)
    for cell in content["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["source"] = portable("".join(cell["source"]), root)
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                output["text"] = portable("".join(output["text"]), root)
            for kind, text in output.get("data", {}).items():
                if kind.startswith("text/"):  # markup: a slash begins more than a path there
                    output["data"][kind] = _known("".join(text), root).replace(_HOME, "~")
    write_atomic(notebook, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _known(text: str, root: Path) -> str:
    """`text` with the folders that every run knows by other names, but for the data of pictures."""
    home = Path.home()
    if home != Path(home.anchor):  # reached by way of the root: ../../home/me/a.json
        text = re.sub(rf"(?:\.\./)+{re.escape(str(home)[1:])}(?=/)", _HOME, text)
    names = {root: "", Path(sys.prefix): ".venv/", Path(sys.base_prefix): ".python/", home: f"{_HOME}/"}
    names[Path(tempfile.gettempdir())] = "…/"
    for folder, name in names.items():
        for path in {str(folder), str(folder.resolve())} - {folder.anchor}:
            parts = re.split(rf"(base64,[\w+/=]+)|{re.escape(path)}(?:/|(?![\w.-]))", text)  # None where the path stood
            text = "".join(name if part is None else part for part in parts)
    return text


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a process whose user has no name, as in a container
        return None
