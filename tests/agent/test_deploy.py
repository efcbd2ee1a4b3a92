"""Deployments on disk: whole or not at all, whatever the moment of a crash."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from peat_p2p.agent.deploy import Deployment, Deployments
from peat_p2p.core.errors import ConflictError, InvalidInputError


def digest(number: int) -> str:
    return f"blake3:{number:064x}"[:7] + f"{number:064d}"


def unpacker(content: str) -> Callable[[Path], None]:
    def unpack(folder: Path) -> None:
        temporary = folder.with_name(f".{folder.name}.tmp")
        temporary.mkdir()
        (temporary / "content").write_text(content)
        temporary.rename(folder)

    return unpack


def deploy(deployments: Deployments, version: str, *, now: int = 1, link: str = "", name: str = "app") -> Deployment:
    number = sum(version.encode())
    return deployments.deploy(
        package=name,
        version=version,
        arch="any",
        digest=digest(number),
        manifest=digest(number + 1),
        now=now,
        unpack=unpacker(version),
        link=link,
    )


def test_the_link_moves_and_old_versions_are_kept_up_to_the_policy(tmp_path: Path) -> None:
    deployments = Deployments(tmp_path / "d", keep=1)
    for now, version in enumerate(("1", "2", "3", "4")):
        deployment = deploy(deployments, version, now=now)
        assert (tmp_path / "d/app/current/content").read_text() == version
        assert deployments.current() == [deployment]
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "d/app").iterdir() if path.is_dir())
    assert names == ["3", "4", "current"]
    assert len(list((tmp_path / "d/app").glob("*.json"))) == 2


def test_deploying_what_is_in_force_changes_nothing(tmp_path: Path) -> None:
    deployments = Deployments(tmp_path / "d", keep=1)
    first = deploy(deployments, "1", now=1)
    assert deploy(deployments, "1", now=9) == first


def test_going_back_to_a_version_that_was_kept(tmp_path: Path) -> None:
    deployments = Deployments(tmp_path / "d", keep=2)
    deploy(deployments, "1", now=1)
    deploy(deployments, "2", now=2)
    back = deploy(deployments, "1", now=3)
    assert back.deployed_at == 3
    assert (tmp_path / "d/app/current/content").read_text() == "1"


def test_a_failed_unpack_leaves_what_is_in_force(tmp_path: Path) -> None:
    deployments = Deployments(tmp_path / "d", keep=1)
    first = deploy(deployments, "1")

    def fail(folder: Path) -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        deployments.deploy(
            package="app", version="2", arch="any", digest=digest(2), manifest=digest(3), now=2, unpack=fail
        )
    assert deployments.current() == [first]


def test_a_further_link_moves_too_and_never_over_a_file(tmp_path: Path) -> None:
    deployments = Deployments(tmp_path / "d", keep=1)
    link = tmp_path / "app"
    deploy(deployments, "1", link=str(link))
    assert (link / "content").read_text() == "1"
    deploy(deployments, "2", link=str(link))
    assert (link / "content").read_text() == "2"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConflictError, match="not a symbolic link"):
        deploy(deployments, "3", link=str(tmp_path / "file"))
    with pytest.raises(InvalidInputError):
        deploy(deployments, "3", link="relative")
    assert (tmp_path / "file").read_text() == "mine"
    assert (link / "content").read_text() == "2"


@pytest.mark.parametrize("name", ["../../evil", ".hidden", "a/b", "current"])
def test_names_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    deployments = Deployments(tmp_path / "d", keep=1)
    deployment = deploy(deployments, "1", name=name)
    assert Path(deployment.path).resolve().is_relative_to((tmp_path / "d").resolve())
    assert deployments.get(name) == deployment
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_removal_takes_it_out_of_force(tmp_path: Path) -> None:
    deployments = Deployments(tmp_path / "d", keep=1)
    deploy(deployments, "1")
    assert deployments.remove("app")
    assert not deployments.remove("app")
    assert deployments.current() == []
    assert not (tmp_path / "d/app").exists()


def test_read_only_folders_are_removed_too(tmp_path: Path) -> None:
    deployments = Deployments(tmp_path / "d", keep=0)
    first = deploy(deployments, "1")
    Path(first.path).chmod(0o500)
    deploy(deployments, "2")
    assert not Path(first.path).exists()


CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from peat_p2p.agent.deploy import Deployments

    root, start = Path(sys.argv[1]), int(sys.argv[2])
    deployments = Deployments(root, keep=1)
    deployments.clean()

    def unpacker(number):
        def unpack(folder):
            temporary = folder.with_name(f".{folder.name}.tmp{number}")
            temporary.mkdir(exist_ok=True)
            for part in range(5):
                (temporary / f"part{part}").write_text(str(number))
            temporary.rename(folder)
        return unpack

    print("up", flush=True)
    for number in range(start, start + 10_000):
        deployments.deploy(package="app", version=str(number), arch="any", digest=f"blake3:{number:08d}" + "0" * 56,
                           manifest="m", now=number, unpack=unpacker(number))
    """
)


def test_killed_at_any_moment_the_version_in_force_is_whole(tmp_path: Path) -> None:
    """kill -9 while versions are switched as fast as the disk allows: what is in force is one version, complete."""
    root = tmp_path / "d"
    chance = random.Random(7)
    start = last = 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(root), str(start)], stdout=subprocess.PIPE, env={**os.environ}
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + chance.random() * 0.15)
        process.kill()
        process.wait()
        found = Deployments(root, keep=1).get("app")
        if found is None:
            assert start == 0  # killed before the first was in force
            continue
        parts = {path.read_text() for path in Path(found.path).iterdir()}
        assert parts == {found.version}
        assert len(list(Path(found.path).iterdir())) == 5
        assert int(found.version) >= last
        last = int(found.version)
        start = last + 1
    assert last > 0
    (root / "app/.9-abcdef01.x1y2.tmp/half").mkdir(parents=True)
    Deployments(root, keep=1).clean()
    assert not (root / "app/.9-abcdef01.x1y2.tmp").exists()
    leftovers = [path.name for path in (root / "app").iterdir() if path.name.startswith((".removed-", ".link-"))]
    assert leftovers == []
