"""Seeds: secret, stable, one of sixteen."""

import os
import stat

import pytest

from course_lib.checks.expect import PUBLIC_SEED
from course_lib.grading.seeds import class_key, seed_of

KEY = bytes(range(32))
STUDENTS = [f"student-{i}" for i in range(400)]


def seeds(key=KEY, release="0a1b2c3d"):
    return {seed_of(key, release, student) for student in STUDENTS}


def test_a_release_has_sixteen_seeds_and_uses_them_all():
    assert len(seeds()) == 16


def test_no_seed_is_the_public_one():
    assert PUBLIC_SEED not in seeds()


def test_another_release_or_another_class_has_other_seeds():
    assert not seeds() & seeds(release="ffffffff")
    assert not seeds() & seeds(key=KEY[::-1])


def test_a_neighbour_in_one_release_is_not_always_one_in_the_next():
    def places(release):
        first = seed_of(KEY, release, STUDENTS[0])
        return {student for student in STUDENTS if seed_of(KEY, release, student) == first}

    assert places("0a1b2c3d") != places("ffffffff")


def test_the_key_of_a_class_is_made_once_and_is_the_owners_alone(tmp_path):
    key = class_key(tmp_path / "class")
    assert len(key) == 32
    assert class_key(tmp_path / "class") == key
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "class" / "seed.key").stat().st_mode) == 0o600


def test_two_classes_have_two_keys(tmp_path):
    assert class_key(tmp_path / "a") != class_key(tmp_path / "b")


@pytest.mark.parametrize("text", ["", "no key", "0a0b", "zz" * 32])
def test_a_damaged_key_is_not_replaced_but_named(tmp_path, text):
    (tmp_path / "seed.key").write_text(text)
    with pytest.raises(ValueError, match="restore it from a backup"):
        class_key(tmp_path)
    assert (tmp_path / "seed.key").read_text() == text
