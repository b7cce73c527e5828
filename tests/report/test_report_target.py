"""Where a page goes: nothing but a regular file is ever replaced."""

import os
import stat
from pathlib import Path

import pytest

from evengrad.nouns import RunLogError, Story
from evengrad.report import check_target, write

STORY = Story(title="a title", headline="h")


def test_a_pipe_is_refused_before_anything_is_rendered_and_stays_a_pipe(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("evengrad.report._page.page", lambda *stories, title: pytest.fail("rendered"))
    with pytest.raises(RunLogError, match="pipe: got a pipe, want a file"):
        write(STORY, tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_device_is_refused_also_through_a_link(tmp_path):
    (tmp_path / "link").symlink_to(os.devnull)
    for path in (os.devnull, tmp_path / "link"):
        with pytest.raises(RunLogError, match="got a device, want a file"):
            write(STORY, path)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_file_is_written(tmp_path, exists):
    (tmp_path / "real").mkdir()
    file, link = tmp_path / "real" / "page.html", tmp_path / "link.html"
    link.symlink_to("real/page.html")
    if exists:
        file.write_text("old")
    assert write(STORY, link) == link
    assert link.readlink() == Path("real/page.html")
    assert "a title" in file.read_text()
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]


def test_an_old_file_keeps_its_permissions_and_a_new_one_obeys_the_umask(tmp_path):
    old, new = tmp_path / "old.html", tmp_path / "new.html"
    old.touch()
    old.chmod(0o640)
    mask = os.umask(0o027)
    try:
        old.chmod(0o604)
        write(STORY, old)
        write(STORY, new)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(old.stat().st_mode) == 0o604
    assert stat.S_IMODE(new.stat().st_mode) == 0o640


def test_a_place_that_will_do_is_left_as_it_is(tmp_path):
    file = tmp_path / "page.html"
    file.write_text("old")
    before = tmp_path.stat().st_ino, file.stat()
    check_target(file)
    check_target(tmp_path / "new.html")
    assert (tmp_path.stat().st_ino, file.stat()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("", "got a folder, want the name of a file"),
        ("nowhere/page.html", "got a folder that does not exist"),
        ("file/page.html", "NotADirectoryError"),
        ("loop", "OSError: .*[Ss]ymbolic links"),
        ("x" * 300, "File name too long"),
        ("null\0byte", "null byte"),
    ],
)
def test_a_place_that_will_not_do_is_known_before_the_work(tmp_path, place, said):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for refuse in (check_target, lambda path: write(STORY, path)):
        with pytest.raises(RunLogError, match=said):
            refuse(f"{tmp_path}/{place}")


def test_a_folder_that_takes_no_files_is_known_before_the_work(tmp_path, monkeypatch):
    def full(**settings):
        raise PermissionError(13, "no entry", str(settings["dir"]))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(RunLogError, match=r"PermissionError.*want a place to write to"):
        check_target(tmp_path / "page.html")
