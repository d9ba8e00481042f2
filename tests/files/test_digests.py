"""Digests are recorded by prepared data, caches and checkpoints: their values may never change.

Every expected value here was computed by the sha256sum program.
"""

from ilrec.files.digests import (
    blocks_digest,
    file_digest,
    fingerprint_of,
    size_and_digest,
    text_digest,
)

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_text_its_blocks_and_its_file_have_one_digest(tmp_path):
    path = tmp_path / "abc"
    path.write_text("abc")
    assert text_digest("abc") == blocks_digest([b"a", b"", b"bc"]) == file_digest(path) == ABC
    assert size_and_digest(path) == (3, ABC)


def test_a_fingerprint_is_over_settings_and_files(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    files = (tmp_path / "one", tmp_path / "two")
    # printf "(5, 'x')onetwo" | sha256sum
    assert fingerprint_of(files, 5, "x") == (
        "66b0bf6445abf94901a12d19d522976fd6ecb31e40ebad4428ffe39f7449b4d8"
    )
    # printf "()one" | sha256sum
    assert fingerprint_of(files[:1]) == (
        "fa18e6626e1f415863c36955cfc799149fc7b666b71449d8ffe56b42cb3e7c21"
    )


def test_a_large_file_is_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("ilrec.files.digests.BLOCK_BYTES", 2)
    path = tmp_path / "abc"
    path.write_text("abc")
    assert size_and_digest(path) == (3, ABC)
