"""Files that users hand in, and results that appear whole or not at all."""

import os
import pickle

import numpy as np
import pytest

from blockffn_mlc.errors import UserError
from runtime_py import files
from runtime_py.files import read_ids, read_text, replacing, writing_array


def test_ids_from_json_and_npy(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    np.save(tmp_path / "a.npy", np.array([1, 2, 3], np.uint16))
    assert read_ids(tmp_path / "a.json") == read_ids(tmp_path / "a.npy") == [1, 2, 3]


@pytest.mark.parametrize("content", ["{}", "[1, true]", "[1.5]", "[[1]]", "1", "[1", "\xff", "[" * 100000])
def test_other_json_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="a.json"):
        read_ids(tmp_path / "a.json")


@pytest.mark.parametrize("array", [np.zeros((2, 2), int), np.zeros(3), np.array(1)])
def test_other_arrays_are_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match="flat list of integer token ids"):
        read_ids(tmp_path / "a.npy")


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_pickles_are_never_executed(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Trap()], object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "c.npy").write_bytes(b"")
    for name in ("a.npy", "b.npy", "c.npy"):
        with pytest.raises(UserError, match="not readable as token ids"):
            read_ids(tmp_path / name)


def test_missing_and_binary_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    with pytest.raises(UserError, match="byte 2"):
        read_text(tmp_path / "a.txt")
    for read in (read_text, read_ids):
        with pytest.raises(UserError, match="cannot be read"):
            read(tmp_path / "nothing")
    (tmp_path / "b.txt").write_bytes("a\r\n\u4e16".encode())
    assert read_text(tmp_path / "b.txt") == "a\r\n\u4e16"


def test_results_appear_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out.npy"
    out.write_text("old")
    with pytest.raises(ZeroDivisionError), writing_array(out, (2, 3)) as array:
        array[0] = 1
        raise ZeroDivisionError
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]
    with writing_array(out, (2, 3)) as array:
        array[...] = 5
    found = np.load(out)
    assert found.dtype == np.float32 and found.tolist() == [[5] * 3] * 2 and list(tmp_path.iterdir()) == [out]
    with writing_array(None, (2, 3)) as array:
        assert array is None


def test_unwritable_places_are_named(tmp_path):
    with pytest.raises(UserError, match="cannot be written"), replacing(tmp_path / "no" / "x") as temporary:
        temporary.write_text("x")


def test_a_byte_order_mark_is_left_out(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfab")
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_text(tmp_path / "a.txt") == "ab" and read_ids(tmp_path / "a.json") == [1]


def test_archives_and_impossible_lengths_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", np.arange(3))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n")
    for name in ("a.npy", "b.npy"):
        with pytest.raises(UserError, match="not readable as token ids"):
            read_ids(tmp_path / name)


@pytest.mark.parametrize("name", ["pipe", "folder", ".", "", "no/x"])
def test_only_regular_files_are_replaced(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="regular file|no such folder"), replacing(name):
        pytest.fail("the work started")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "folder").is_dir()


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(files.os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match="No space left"), writing_array(tmp_path / "a.npy", (2, 3)):
        pytest.fail("the work started")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve space")
def test_arrays_have_their_disk_space_before_they_are_filled(tmp_path):
    with writing_array(tmp_path / "a.npy", (1 << 18,)):
        temporary, = tmp_path.iterdir()
        assert temporary.stat().st_blocks * 512 >= 1 << 20
