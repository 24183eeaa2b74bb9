"""uv installs with pip's settings, and pip where it can't. uv is a script here, in a wheel that the real pip brings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from qatlib.run import install

UV = """#!{python}
import json, os, sys
given = dict(arguments=sys.argv[1:], variables={{k: v for k, v in os.environ.items() if k.startswith(("UV_", "SSL_"))}})
open({log!r}, "a").write(json.dumps(given) + "\\n")
if "--dry-run" in sys.argv:
    print(json.dumps(dict(changes=[dict(name=name, action="installed") for name in ("torch", "numpy")])))
else:
    print("Resolved 2 packages in 1ms", "warning: of hard links", " + numpy==1", sep="\\n", file=sys.stderr)
sys.exit({status})
"""


class Place:
    """A folder with a wheel of that uv, from which alone pip installs."""

    def __init__(self, root: Path) -> None:
        self.root, self.log, self.wheels = root, root / "log", root / "wheels"
        self.wheels.mkdir()
        (root / "constraints.txt").write_text("uv==0\n")

    def offer(self, status: int) -> None:
        script = UV.format(python=sys.executable, log=str(self.log), status=status)
        about = {"METADATA": "Metadata-Version: 2.1\nName: uv\nVersion: 0\n", "WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n"}
        with zipfile.ZipFile(self.wheels / "uv-0-py3-none-any.whl", "w") as wheel:
            executable = zipfile.ZipInfo("uv-0.data/scripts/uv")
            executable.external_attr = 0o100755 << 16
            wheel.writestr(executable, script)
            for name, text in about.items():
                wheel.writestr(f"uv-0.dist-info/{name}", text)
            wheel.writestr("uv-0.dist-info/RECORD", "")

    def install(self, package: str, **variables: str) -> subprocess.CompletedProcess[str]:
        pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "TMPDIR": str(self.root)}
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))} | pip | variables
        command = [sys.executable, "-I", install.__file__, "-c", "constraints.txt", package]
        return subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True)

    @property
    def calls(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_uv_installs_and_says_first_what_it_will_download(place: Place) -> None:
    place.offer(status=0)
    done = place.install("numpy", PIP_EXTRA_INDEX_URL="https://a/simple  https://b/simple", PIP_CERT="/ca.pem")
    first, *others = done.stdout.splitlines()
    assert done.returncode == 0 and first == "packages to install: 2: about 0.5 GB to download, with torch's CPU build"
    assert others == ["Resolved 2 packages in 1ms"] and not done.stderr
    _, call = place.calls
    assert call["variables"].items() >= {"UV_INDEX": "https://a/simple https://b/simple", "SSL_CERT_FILE": "/ca.pem"}.items()
    assert call["arguments"][-3:] == ["-c", "constraints.txt", "numpy"]
    assert {"--no-index", "--find-links", str(place.wheels), sys.executable} <= {*call["arguments"]}
    assert [path.name for path in place.root.iterdir() if path.is_dir()] == ["wheels"]  # nothing is left of uv


@pytest.mark.parametrize(
    ("why", "status", "variables"),
    [
        ("pip could not bring uv", None, {}),
        ("uv failed (warning: of hard links", 1, {}),
        ("uv does not know pip's setting proxy", 0, {"PIP_PROXY": "http://a:1"}),
    ],
)
def test_pip_installs_where_uv_can_not(place: Place, why: str, status: int | None, variables: dict[str, str]) -> None:
    if status is not None:
        place.offer(status)
    done = place.install("pip", **variables)  # which is there already
    assert done.returncode == 0 and why in done.stdout and not done.stderr
    assert "pip installs: about 0.5 GB with torch's CPU build or 3.5 GB with torch's CUDA build" in done.stdout


def test_what_can_not_be_installed_is_said_by_pip(place: Place) -> None:
    done = place.install("no-such-package-of-qatlib")
    assert done.returncode == 1 and "No matching distribution found for no-such-package-of-qatlib" in done.stderr


def test_a_variable_counts_more_than_a_file_and_other_commands_do_not_count() -> None:
    listed = ":env:.timeout='9'\nglobal.timeout='1'\ninstall.retries='2'\nglobal.retries='3'\ndownload.proxy='x'\nglobal.cert=''"
    assert install.settings(listed) == {"timeout": "9", "retries": "2"}


def test_settings_become_those_of_uv(tmp_path: Path) -> None:
    given = {"index-url": "https://a", "find-links": "x\ny", "constraint": "c.txt", "cache-dir": "/big", "no-index": "false"}
    told, options = install.for_uv(given, {"REQUESTS_CA_BUNDLE": str(tmp_path)})
    assert told == {"UV_DEFAULT_INDEX": "https://a", "UV_CACHE_DIR": "/big/uv", "SSL_CERT_DIR": str(tmp_path)}
    assert options == ["--constraints", "c.txt", "--find-links", "x", "--find-links", "y"]
    assert install.for_uv({}, {}) == ({}, [])


@pytest.mark.parametrize("name", ["only-binary", "no-binary", "pre", "target", "proxy", "client-cert", "require-hashes"])
def test_a_setting_that_uv_has_not_is_named(name: str) -> None:
    with pytest.raises(install.UnknownSettingError, match=name):
        install.for_uv({name: "x"}, {})


def test_the_size_is_that_of_the_build_of_torch() -> None:
    changes = [{"name": name} for name in ("torch", "nvidia-cublas")]
    assert install.announce(changes) == "packages to install: 2: about 3.5 GB to download, with torch's CUDA build"
    assert install.announce([{"name": "uv"}]) == "packages to install: 1"
