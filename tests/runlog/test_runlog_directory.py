"""A directory is a run or it is left alone."""

import json
import sys

import pytest

from evengrad.nouns import Curve, NewerRunError, NotARunError, Reading, RunLogError, Story
from evengrad.runlog import Writer, is_run, read, read_story, write_story

STORY = Story(title="digits", headline="cured", curves=(Curve(label="a", group="before", steps=(0,), values=(1.0,)),))


def listing(directory):
    return sorted(
        (str(path.relative_to(directory)), path.is_file() and path.read_bytes()) for path in directory.rglob("*")
    )


def newer(directory):
    Writer(directory, parameters=("w",)).close()
    meta = json.loads((directory / "meta.json").read_text())
    (directory / "meta.json").write_text(json.dumps(meta | {"version": 3, "parameters": "compressed"}))


ACCESS = [
    lambda directory: Writer(directory, parameters=("w",)),
    read,
    read_story,
    lambda directory: write_story(directory, STORY),
]


def test_meta_json_holds_what_the_run_is(tmp_path):
    Writer(tmp_path / "run", parameters=("w", "b"), dtype="bfloat16", facts={"seed": "3"}).close()
    meta = json.loads((tmp_path / "run" / "meta.json").read_text())
    assert meta.pop("created").endswith("+00:00")
    assert meta == {
        "format": "evengrad-run",
        "version": 2,
        "parameters": ["w", "b"],
        "dtype": "bfloat16",
        "facts": {"seed": "3"},
    }
    assert is_run(tmp_path / "run")
    assert read(tmp_path / "run").dtype == "bfloat16"


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize(
    "meta", [None, "{}", "[]", "half of {", '{"format": "other-run", "version": 1}', "[" * 100_000]
)
def test_a_directory_of_something_else_is_refused_and_untouched(tmp_path, access, meta):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "sub").mkdir()
    if meta is not None:
        (tmp_path / "meta.json").write_text(meta)
    before = listing(tmp_path)
    with pytest.raises(NotARunError, match=r"no meta\.json|something else|JSON as evengrad wrote it"):
        access(tmp_path)
    assert listing(tmp_path) == before
    assert not is_run(tmp_path)


@pytest.mark.parametrize("access", ACCESS)
def test_a_file_is_not_a_run(tmp_path, access):
    (tmp_path / "file").write_text("text")
    with pytest.raises(NotARunError, match="a file"):
        access(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize("access", [read, read_story])
def test_a_directory_that_is_not_there_is_not_a_run(tmp_path, access):
    with pytest.raises(NotARunError, match="nothing there"):
        access(tmp_path / "no")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("access", ACCESS)
def test_a_newer_run_is_refused_by_its_version_and_untouched(tmp_path, access):
    newer(tmp_path)
    before = listing(tmp_path)
    with pytest.raises(NewerRunError, match="got a run of version 3, want version 2 or older; update evengrad"):
        access(tmp_path)
    assert listing(tmp_path) == before
    assert is_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "1"}, "version: got '1'"),
        ({"version": True}, "version: got True"),
        ({"parameters": None}, "parameters: got None"),
        ({"parameters": ["w", 3]}, "parameters: got"),
        ({"parameters": ["x" * 10_001]}, "parameters: got"),
        ({"dtype": 1}, "dtype: got 1"),
        ({"facts": {"seed": 3}}, "facts: got"),
    ],
)
def test_a_damaged_meta_json_is_an_error_that_names_the_key(tmp_path, change, message):
    Writer(tmp_path, parameters=("w",)).close()
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(RunLogError, match=message):
        read(tmp_path)


def test_a_giant_meta_json_is_not_loaded(tmp_path):
    with (tmp_path / "meta.json").open("wb") as file:
        file.truncate(65 * 1024 * 1024)  # a hole: takes no space
    with pytest.raises(RunLogError, match="want at most 67108864 bytes"):
        read(tmp_path)
    assert not is_run(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"parameters": ("w", "c")},
            "parameter 1: got 'c', want 'b' as in the run that is there; begin a new directory",
        ),
        ({"parameters": ("w",)}, "parameters: got 1 names, want the 2 of the run that is there"),
        ({"parameters": ("w", "b", "c")}, "parameters: got 3 names, want the 2"),
        ({"parameters": ("w", "b"), "dtype": "float64"}, "dtype: got float64, want float32"),
    ],
)
def test_another_run_is_not_mixed_in(tmp_path, settings, message):
    Writer(tmp_path, parameters=("w", "b")).close()
    before = listing(tmp_path)
    with pytest.raises(RunLogError, match=message):
        Writer(tmp_path, **settings)
    assert listing(tmp_path) == before


def test_what_a_killed_start_left_does_not_block_the_next(tmp_path):
    (tmp_path / ".evengrad-0123.tmp").write_bytes(b'{"format"')
    Writer(tmp_path, parameters=("w",)).close()
    assert read(tmp_path).complete


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_directory_that_cannot_be_made_is_an_error():
    with pytest.raises(RunLogError, match="want a directory that can be written to"):
        Writer("/proc/evengrad/run", parameters=("w",))


def test_a_story_comes_back_and_is_replaced_whole(tmp_path):
    with Writer(tmp_path, parameters=("w",)) as log:
        log.append(Reading())
        assert read_story(tmp_path) is None
        write_story(tmp_path, Story(title="first", headline="..."))
        write_story(tmp_path, STORY)
    assert read_story(tmp_path) == STORY
    assert read(tmp_path).complete
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "meta.json",
        "rank00000-0000.steps.arrows",
        "story.json",
    ]


def test_a_story_makes_an_empty_directory_a_run_without_parameters(tmp_path):
    write_story(tmp_path / "new" / "run", STORY)
    assert read_story(tmp_path / "new" / "run") == STORY
    record = read(tmp_path / "new" / "run")
    assert (record.parameters, record.readings, record.note) == ((), (), "the run has no readings")


def test_a_story_that_could_not_be_read_back_is_not_written(tmp_path):
    write_story(tmp_path, STORY)
    with pytest.raises(RunLogError, match="a text of 100001 characters"):
        write_story(tmp_path, Story(title="x" * 100_001, headline=""))
    with pytest.raises(RunLogError, match="a story that can be written"):
        write_story(tmp_path, Story(title="\ud800", headline=""))
    assert read_story(tmp_path) == STORY


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]", b'{"title": 3, "headline": ""}'])
def test_a_damaged_story_is_an_error(tmp_path, text):
    write_story(tmp_path, STORY)
    (tmp_path / "story.json").write_bytes(text)
    with pytest.raises(RunLogError, match=r"story\.json"):
        read_story(tmp_path)
