"""Files and folders appear whole or not at all, whenever a process is killed; and drafts of the dead go."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from mnv3.files import atomic, locks

pytestmark = pytest.mark.skipif(locks.fcntl is None, reason="needs locks of files")
NAMES = ("config.json", "model.safetensors")


def killed_in(function, *args):
    """Run a function in another process, which kills itself in it."""
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def write(folder, text, **options):
    with atomic.new_folder(folder, names=NAMES, needs=NAMES[1], **options) as new:
        for name in NAMES:
            (new / name).write_text(text)


def write_and_die(folder, text):
    with atomic.new_folder(folder, names=NAMES, needs=NAMES[1], exist_ok=True) as new:
        (new / NAMES[0]).write_text(text)
        die()


def drafts(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def texts(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_drafts_of_the_dead_go(tmp_path):
    killed_in(write_and_die, tmp_path / "out", "dead")
    killed_in(write_and_die, tmp_path / "out.b", "dead")
    assert len(drafts(tmp_path)) == 2
    assert not (tmp_path / "out").exists()
    write(tmp_path / "out", "whole")
    assert texts(tmp_path / "out") == dict.fromkeys(NAMES, "whole")
    (other,) = drafts(tmp_path)
    assert other.startswith(".out.b."), "another name's draft is another's to remove"


def test_drafts_of_the_living_stay(tmp_path):
    """Of another process and of this one, for folders and files."""

    def hold(ready, go):
        with atomic.new_file(tmp_path / "out") as draft:
            draft.write_text("slow")
            ready.set()
            go.wait(timeout=60)

    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    process = context.Process(target=hold, args=(ready, go))
    process.start()
    assert ready.wait(timeout=60)
    with atomic.new_file(tmp_path / "out") as mine:
        mine.write_text("mine")
        atomic.write_atomically(tmp_path / "out", b"fast")
        assert len(drafts(tmp_path)) == 2
    assert (tmp_path / "out").read_text() == "mine"
    go.set()
    process.join(timeout=60)
    assert process.exitcode == 0
    assert (tmp_path / "out").read_text() == "slow"
    assert drafts(tmp_path) == []


def test_a_file_that_is_killed_leaves_the_old_one(tmp_path):
    def replace_and_die():
        atomic._sync = die
        atomic.write_atomically(tmp_path / "x", b"new")

    atomic.write_atomically(tmp_path / "x", b"old")
    killed_in(replace_and_die)
    assert (tmp_path / "x").read_bytes() == b"old"
    assert len(drafts(tmp_path)) == 1
    atomic.write_atomically(tmp_path / "x", b"newer")
    assert (tmp_path / "x").read_bytes() == b"newer"
    assert drafts(tmp_path) == []


@pytest.mark.parametrize(("exchange", "after"), [(True, 0), (True, 1), (False, 0), (False, 1), (False, 2)])
def test_killed_between_the_renames(tmp_path, exchange, after):
    """Where names can be exchanged the folder is never away; elsewhere the next call goes on from the draft."""
    out = tmp_path / "out"
    write(out, "old")

    def replace_and_die():
        calls, replace, swap = [], Path.replace, atomic._exchange

        def counted(function):
            def call(*args, **kwargs):
                if len(calls) == after:
                    die()
                calls.append(function)
                return function(*args, **kwargs)

            return call

        Path.replace = counted(replace)
        atomic._exchange = counted(swap) if exchange else lambda *_: False
        atomic.shutil.rmtree = counted(None)
        write(out, "new", exist_ok=True)

    killed_in(replace_and_die)
    expected = "old" if after == 0 else "new"
    if exchange or after != 1:
        assert texts(out) == dict.fromkeys(NAMES, expected)
    else:
        assert not out.exists()
        assert len(drafts(tmp_path)) == 1
    with pytest.raises(FileExistsError, match="out exists"):
        write(out, "third")
    assert texts(out) == dict.fromkeys(NAMES, expected)
    write(out, "third", exist_ok=True)
    assert texts(out) == dict.fromkeys(NAMES, "third")
    assert drafts(tmp_path) == []


def test_names_are_exchanged_at_once_here(tmp_path):
    """On Linux' usual file systems; elsewhere `_exchange` says no."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not atomic._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot")
    assert (tmp_path / "a" / "b").exists()
    assert (tmp_path / "b" / "a").exists()


def make(folder, kind):
    folder.mkdir()
    (folder / "model.safetensors").touch()
    if kind == "a folder":
        (folder / "config.json").mkdir()
        (folder / "config.json" / "mine.txt").touch()
    elif kind == "a link":
        (folder.parent / "elsewhere").touch()
        (folder / "config.json").symlink_to(folder.parent / "elsewhere")
    elif kind == "another file":
        (folder / "thesis.tex").touch()
    elif kind == "no weights":
        (folder / "model.safetensors").rename(folder / "config.json")


@pytest.mark.parametrize("kind", ["a folder", "a link", "another file", "no weights"])
def test_what_others_made_is_not_replaced(tmp_path, kind):
    make(tmp_path / "out", kind)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="is not replaced: it has (config.json|thesis.tex|no model.safetensors)"):
        write(tmp_path / "out", "new", exist_ok=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new", exist_ok=True)
    assert texts(tmp_path / "out") == dict.fromkeys(NAMES, "new")


def test_what_is_written_beside_a_file_is_there_first(tmp_path, monkeypatch):
    """A .bin goes with its .xml; a folder among them replaces a folder."""
    order, rename = [], atomic._rename
    monkeypatch.setattr(atomic, "_rename", lambda draft, path: order.append(path.name) or rename(draft, path))
    for text in ("old", "new"):
        with atomic.new_file(tmp_path / "b.xml") as draft:
            draft.write_text(text)
            draft.with_suffix(".bin").write_text(text)
            (draft.parent / "c").mkdir()
            (draft.parent / "c" / text).touch()
        assert sorted(order[-3:]) == ["b.bin", "b.xml", "c"]
        assert order[-1] == "b.xml"
        assert [(tmp_path / name).read_text() for name in ("b.xml", "b.bin")] == [text, text]
        assert [path.name for path in (tmp_path / "c").iterdir()] == [text]
    assert drafts(tmp_path) == []


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(IsADirectoryError) as caught:
        atomic.write_atomically(tmp_path / "out", b"file")
    assert caught.value.filename == str(tmp_path / "out"), "not the draft's"
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Then no one can tell the drafts of the dead, and they stay."""

    def refused(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    killed_in(write_and_die, tmp_path / "out", "dead")
    monkeypatch.setattr(locks.fcntl, "flock", refused)
    write(tmp_path / "out", "whole")
    assert texts(tmp_path / "out") == dict.fromkeys(NAMES, "whole")
    assert len(drafts(tmp_path)) == 1


def test_an_error_leaves_nothing(tmp_path):
    def fail():
        with atomic.new_file(tmp_path / "x") as draft:
            draft.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Files, their folder, and after the rename the folder around."""
    events = []
    replace, sync = Path.replace, atomic._sync
    monkeypatch.setattr(atomic, "_sync", lambda path: events.append(path.name) or sync(path))
    monkeypatch.setattr(Path, "replace", lambda self, other: events.append("rename") or replace(self, other))
    write(tmp_path / "out", "new")
    assert sorted(events[:3]) == sorted([*NAMES, "out"])
    assert events[3:] == ["rename", tmp_path.name]
    events.clear()
    atomic.write_atomically(tmp_path / "x", b"1")
    assert events == ["x", "rename", tmp_path.name]
