"""Bring packages into the environment of the running Python: by uv where pip can bring uv, else by pip itself.

The Makefile runs this file by its path, before anything is installed, so it needs the standard library alone. uv reads none of
pip's settings. It is handed its indexes, constraints and certificates; where pip has a setting that uv has not, pip installs.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "retries": "UV_HTTP_RETRIES",
    "no-cache-dir": "UV_NO_CACHE",
}
"""The variables by which uv is told pip's settings. Their values are written alike."""
OPTIONS = {"constraint": "--constraints", "find-links": "--find-links"}
"""Options of uv that stand for pip's, once for each of the values."""
NEEDLESS = {"cert", "cache-dir", "no-index", "user", "disable-pip-version-check", "no-input", "progress-bar", "no-color", "quiet"}
NEEDLESS |= {"verbose", "log", "config-file", "require-virtualenv", "root-user-action", "no-warn-script-location"}
"""Settings of pip that are treated apart below, or change nothing of what is installed."""
SIZES = {"CPU": 0.5, "CUDA": 3.5}
"""GB to download for the whole environment, by torch's build."""
SHOWN = re.compile(r" *(Resolved|Downloading|Downloaded|Using cached|Building|Prepared|Installing|Installed) (?!.*\.metadata)")
"""The lines of uv and pip that show how far they are."""


class UnknownSettingError(Exception):
    """pip has a setting that uv has not."""


def settings(listed: str) -> dict[str, str]:
    """pip's settings for an installation, from what `pip config list` prints. A variable counts more than a file."""
    found = {}
    for wanted in ("global", "install", ":env:"):
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            section, _, key = name.rpartition(".")
            if section == wanted and (text := ast.literal_eval(value)):
                found[key] = text
    return found


def for_uv(given: Mapping[str, str], variables: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """pip's settings as variables and options of uv.

    Args:
        given: the settings, as `settings` returns them.
        variables: those of the environment, of which some name certificates for pip.

    Raises:
        UnknownSettingError: uv has none like it.
    """
    if unknown := sorted(given.keys() - VARIABLES.keys() - OPTIONS.keys() - NEEDLESS):
        raise UnknownSettingError(unknown[0])
    told = {VARIABLES[key]: " ".join(value.split()) for key, value in given.items() if key in VARIABLES}
    if cert := given.get("cert") or variables.get("REQUESTS_CA_BUNDLE") or variables.get("CURL_CA_BUNDLE"):
        path = Path(cert).expanduser()
        told["SSL_CERT_DIR" if path.is_dir() else "SSL_CERT_FILE"] = str(path)
    if "cache-dir" in given:
        told["UV_CACHE_DIR"] = str(Path(given["cache-dir"]).expanduser() / "uv")
    options = [part for key, option in OPTIONS.items() for value in given.get(key, "").split() for part in (option, value)]
    alone = given.get("no-index", "").lower() in ("1", "true", "yes", "on")
    return told, [*options, *(["--no-index"] if alone else [])]


def follow(command: Sequence[str], variables: Mapping[str, str]) -> list[str]:
    """Run an installer and print how far it is. Its other lines are returned if it fails, the last ones."""
    hidden: deque[str] = deque(maxlen=30)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(variables)) as process:
        for line in process.stdout or ():
            if SHOWN.match(line):
                print(line.rstrip()[:100], flush=True)
            elif not line.lstrip().startswith(("Collecting ", "Requirement already satisfied", "Looking in ")):
                hidden.append(line.rstrip())
    return [*hidden, f"{command[0]}: exit status {process.returncode}"] if process.returncode else []


def announce(changes: Sequence[Mapping[str, str]]) -> str:
    """What will be installed, and about how much of it is downloaded, in one line."""
    names = {change["name"] for change in changes}
    build = "CUDA" if any(name.startswith("nvidia-") for name in names) else "CPU"
    size = f": about {SIZES[build]} GB to download, with torch's {build} build" if "torch" in names else ""
    return f"packages to install: {len(names)}{size}"


def by_uv(arguments: Sequence[str]) -> str:
    """Install by uv. Returns why it can't be done; an empty text if it is done."""
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True).stdout
    try:
        told, options = for_uv(settings(listed), os.environ)
    except UnknownSettingError as unknown:
        return f"uv does not know pip's setting {unknown}"
    with tempfile.TemporaryDirectory() as folder:
        bring = ["install", "--quiet", "--retries=1", "--no-deps", "--only-binary=:all:", "-c", "constraints.txt"]
        if subprocess.run([*PIP, *bring, "--target", folder, "uv"], capture_output=True).returncode:
            return "pip could not bring uv"
        command = [f"{folder}/bin/uv", "pip", "install", "--no-config", "--index-strategy=unsafe-best-match"]
        command += ["--python", sys.executable, *options, *arguments]
        variables = {**os.environ, **told}
        try:
            planned = subprocess.run(
                [*command, "--dry-run", "--output-format=json"], capture_output=True, text=True, env=variables
            )
            if planned.returncode == 0:
                print(announce(json.loads(planned.stdout)["changes"]), flush=True)
            failed = follow(command, variables)
        except OSError as error:  # a folder in which nothing may be executed
            return f"uv can't be run ({error.strerror})"
    return f"uv failed ({' '.join(failed[:-1])[-200:]})" if failed else ""


def main(arguments: Sequence[str]) -> int:
    """Install what the arguments of `pip install` say. Returns the exit status."""
    if not (why := by_uv(arguments)):
        return 0
    sizes = " or ".join(f"{size} GB with torch's {build} build" for build, size in SIZES.items())
    print(f"{why}; pip installs: about {sizes} for a new environment", flush=True)
    failed = follow([*PIP, "install", "--progress-bar=off", *arguments], os.environ)
    print(*failed, sep="\n", end="\n" if failed else "", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
