"""Commands that serve, and the one that checks a configuration."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from cacheagent.cli import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that a daemon without an entry of clouds.yaml logs in with."""
    words = {"AUTH_URL": "http://127.0.0.1:9/v3", "USERNAME": "agent", "PASSWORD": "secret"}
    for name, value in words.items():
        monkeypatch.setenv(f"OS_{name}", value)


def test_a_good_configuration_is_ok_and_tells_what_has_no_effect(tmp_path: Path) -> None:
    """An operator checks a file before a restart."""
    path = tmp_path / "agent.toml"
    path.write_text("glance.mirrors = ['http://mirror.test']\n")
    done = CliRunner().invoke(main, ["check-config", str(path)])
    assert done.exit_code == 0
    assert done.stdout == "glance.mirrors has no effect in this version\nOK\n"


def test_a_bad_configuration_is_status_2_and_names_the_key(tmp_path: Path) -> None:
    """Neither the check nor the daemon goes on with it."""
    path = tmp_path / "agent.toml"
    path.write_text("glance.retires = 3\n")
    for args in (["check-config", str(path)], ["serve", "--config", str(path)]):
        done = CliRunner().invoke(main, args)
        assert done.exit_code == 2
        assert done.stderr == (
            f"Error: {path}: glance.retires: unknown key (did you mean glance.retries?)\n"
        )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("storage.file_group = 'nobodys'", "storage.file_group: there is no group 'nobodys'"),
        ("api.socket_group = 'nobodys'", "api.socket_group: there is no group 'nobodys'"),
        ("api.token_file = '{junk}'", "api.token_file: {junk}: line 1 is not the SHA-256"),
        ("api.token_file = '{junk}x'", "api.token_file: {junk}x: No such file or directory"),
        ("api = {{tls_cert = '{junk}', tls_key = '{junk}'}}", "api.tls_cert, api.tls_key: {junk}"),
        ("glance.ca_file = '{junk}'", "glance.ca_file: {junk} cannot be used"),
        ("glance.cloud = 'nine'", "glance.cloud 'nine' cannot be used"),
        (
            "qemu = {{sandbox = 'systemd', sandbox_socket = '{junk}x'}}",
            "qemu.sandbox: systemd does not work here: {junk}x: No such file or directory",
        ),
    ],
)
def test_what_the_daemon_would_not_find_is_told_before(
    tmp_path: Path, line: str, told: str
) -> None:
    """What is named and is not there ends the check as it would end the start."""
    junk, path = tmp_path / "junk", tmp_path / "agent.toml"
    junk.write_text("junk\n")
    path.write_text(line.format(junk=junk))
    done = CliRunner().invoke(main, ["check-config", str(path)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {told.format(junk=junk)}")


def test_credentials_that_the_environment_lacks_are_told_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an entry of clouds.yaml a daemon has nothing else to log in with."""
    path = tmp_path / "agent.toml"
    path.touch()
    monkeypatch.delenv("OS_AUTH_URL")
    done = CliRunner().invoke(main, ["check-config", str(path)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: the OS_* environment cannot be used: ")


@pytest.mark.parametrize("key", ["api.socket", "qemu.sandbox_socket"])
def test_no_socket_has_a_longer_path_than_the_kernel_takes(tmp_path: Path, key: str) -> None:
    """107 bytes, as they are written on the disk, and not letters."""
    path = tmp_path / "agent.toml"
    for where, told in (("/" + "x" * 106, ""), ("/x" + "é" * 53, "not be longer than 107 bytes")):
        path.write_text(f'{key} = "{where}"\n')
        done = CliRunner().invoke(main, ["check-config", str(path)])
        assert done.exit_code == (2 if told else 0)
        assert (f"{key}: must" in done.stderr) is bool(told)
        assert told in done.stderr


@pytest.mark.parametrize("shell", ["", "trap '' INT; "], ids=["foreground", "background"])
def test_the_image_server_says_where_it_serves(tmp_path: Path, shell: str) -> None:
    """A folder becomes an image service by one command, and Ctrl-C ends it quietly.

    A shell starts what goes to its background with the signal of Ctrl-C ignored.
    """
    command = [sys.executable, "-m", "cacheagent", "imageserver", str(tmp_path)]
    with subprocess.Popen(
        ["sh", "-c", f'{shell}exec "$@"', "sh", *command, "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout
            assert server.stderr
            url = server.stdout.readline().split()[-1]
            with urllib.request.urlopen(f"{url}/v2/images") as answer:  # noqa: S310 -- our own server
                assert json.load(answer)["images"] == []
            server.send_signal(signal.SIGINT)
            assert server.stderr.read() == ""
            assert server.wait() == 0
        finally:
            # Else a failure would wait here for a server that nobody ends.
            server.kill()


def test_check_config_names_folders_that_keep_everything(tmp_path: Path) -> None:
    """An operator learns before the start that nothing could be evicted, and why."""
    empty, missing, fine = (tmp_path / name for name in ("empty", "missing", "fine"))
    empty.mkdir()
    fine.mkdir()
    (fine / ".keep").touch()
    path = tmp_path / "config.toml"
    folders = ", ".join(f'"{each}"' for each in (empty, missing, fine))
    path.write_text(
        f'[storage]\nscan_dirs = [{folders}]\n[glance]\nauth = "none"\n'
        'endpoint = "http://127.0.0.1:9"\n'
    )
    done = CliRunner().invoke(main, ["check-config", str(path)])
    assert done.exit_code == 0
    told = done.output.splitlines()
    assert [line.split()[1] for line in told[:-1]] == [str(empty), str(missing)]
    assert all(line.endswith("nothing is evicted") for line in told[:-1])
    assert told[-1] == "OK"


def test_check_config_names_what_keeps_all_images_out(tmp_path: Path) -> None:
    """An operator who asks for signatures learns before the start that nobody could have signed."""
    junk, path = tmp_path / "junk", tmp_path / "agent.toml"
    junk.write_text("no certificate")
    images = f"verify_signatures = true\nsignature_ca_file = '{junk}'\ncertificates_dir = '{junk}x'"
    path.write_text(f"[images]\n{images}\n")
    done = CliRunner().invoke(main, ["check-config", str(path)])
    assert done.exit_code == 0
    why = "it has no certificate: while that is so, nobody gets an image"
    assert done.stdout.splitlines() == [
        f"images.signature_ca_file: {junk}: {why}",
        f"images.certificates_dir: {junk}x is no folder that is there",
        "OK",
    ]
    junk.unlink()
    assert f"{junk}: No such file" in CliRunner().invoke(main, ["check-config", str(path)]).stdout


def test_signatures_need_somebody_who_may_sign(tmp_path: Path) -> None:
    """To ask for signatures, and to name nobody, would keep all images out or let all in."""
    path = tmp_path / "agent.toml"
    path.write_text("images.verify_signatures = true\n")
    done = CliRunner().invoke(main, ["check-config", str(path)])
    assert done.exit_code == 2
    assert "images.verify_signatures needs images.signature_ca_file or" in done.stderr


def _loaded_by(what: str) -> set[str]:
    """Give the modules that a new Python has when it has done ``what``."""
    words = [sys.executable, "-c", f"import sys\n{what}\nprint(*sys.modules)"]
    return set(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split())


def test_the_daemon_does_not_load_what_draws_tables() -> None:
    """Its memory is that of each compute host, and it has no terminal."""
    loaded = _loaded_by(
        "from click.testing import CliRunner\n"
        "from cacheagent.cli import main\n"
        "assert CliRunner().invoke(main, ['serve', '--config', '/none']).exit_code == 2"
    )
    assert "cacheagent.daemon" in loaded
    assert "rich" not in loaded
    assert "cacheagent.cli.top" not in loaded


def test_the_help_names_every_command() -> None:
    """Commands are loaded when they are asked for; all of them are still there."""
    told = CliRunner().invoke(main, ["--help"])
    assert told.exit_code == 0
    for name in ("check-config", "disk", "image", "imageserver", "prune", "serve", "status", "top"):
        assert f"\n  {name} " in told.stdout
    unknown = CliRunner().invoke(main, ["cook"])
    assert unknown.exit_code == 2


def test_who_mistypes_a_command_is_told_which_there_is() -> None:
    """What click suggests for a command of ours, it suggests for one that is not loaded yet."""
    here = CliRunner().invoke(main, ["statsu"])
    within = CliRunner().invoke(main, ["image", "lst"])
    assert (here.exit_code, within.exit_code) == (2, 2)
    # An old click (before 8.4) suggests nothing.
    assert ("'status'" in here.stderr) == ("'list'" in within.stderr)
