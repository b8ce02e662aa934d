"""What the secret box keeps: texts come back whole, and only for whom and what they were put in."""

from __future__ import annotations

import pytest

from pvc import secretbox
from pvc.errors import Invalid

pytestmark = pytest.mark.processes

KEY = "3f" * 32


@pytest.mark.parametrize("text", ["secret1", "", " ü\"'$`\\ ", "x" * 1000, "two\nlines\n"])
def test_what_went_in_comes_out(text: str) -> None:
    sealed = secretbox.encrypt(text, KEY, about="n1")
    assert text == "" or text not in sealed
    assert secretbox.decrypt(sealed, KEY, about="n1") == text


def test_the_same_text_looks_different_each_time() -> None:
    assert secretbox.encrypt("secret1", KEY, about="n1") != secretbox.encrypt("secret1", KEY, about="n1")


def test_another_key_does_not_open_it() -> None:
    sealed = secretbox.encrypt("secret1", KEY, about="n1")
    with pytest.raises(Invalid, match="does not fit the cluster key"):
        secretbox.decrypt(sealed, "40" * 32, about="n1")


def test_it_is_good_for_nothing_else() -> None:
    sealed = secretbox.encrypt("secret1", KEY, about="ipmi 10.0.0.1")
    with pytest.raises(Invalid, match="or was changed"):
        secretbox.decrypt(sealed, KEY, about="ipmi 10.0.0.2")


def test_every_changed_character_is_noticed() -> None:
    sealed = secretbox.encrypt("secret1", KEY, about="n1")
    for index, letter in enumerate(sealed):
        other = sealed[:index] + ("A" if letter != "A" else "B") + sealed[index + 1 :]
        with pytest.raises(Invalid):
            secretbox.decrypt(other, KEY, about="n1")


@pytest.mark.parametrize("text", ["", "1:", "2:aa:bb", "secret1", "1:é:ü"])
def test_rubbish_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        secretbox.decrypt(text, KEY, about="n1")
