"""Typing errors as people make them, so that a model meets misspelt queries before it is served."""

from __future__ import annotations

from random import Random

ROWS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")


def _beside() -> dict[str, str]:
    """Return for each key those beside it: left, right, and the two that touch it in the rows above and below."""
    keys: dict[str, str] = {}
    for row, letters in enumerate(ROWS):
        for column, letter in enumerate(letters):
            places = [(row, column - 1), (row, column + 1), (row - 1, column), (row - 1, column + 1), (row + 1, column - 1)]
            places.append((row + 1, column))
            keys[letter] = "".join(ROWS[r][c] for r, c in places if 0 <= r < len(ROWS) and 0 <= c < len(ROWS[r]))
    return keys


BESIDE = _beside()


def misspell(text: str, random: Random) -> str:
    """Return `text` with one typing error, or two where it has more than a dozen characters.

    Each is one of: a character left out, doubled, swapped with the next one, or a key beside the right one; they are the four
    kinds of single error that Damerau (1964, Comm. ACM 7(3)) found behind four fifths of all misspellings, insertion being the
    doubling that keyboards make. A character that is alone is kept: nothing would be left of the text.
    """
    for _ in range(1 if len(text) <= 12 else random.randint(1, 2)):
        if len(text) < 2:
            return text
        place = random.randrange(len(text))
        character = text[place]
        kind = random.randrange(4)
        if kind == 0:
            text = text[:place] + text[place + 1 :]
        elif kind == 1:
            text = text[:place] + character + text[place:]
        elif kind == 2:
            place = min(place, len(text) - 2)
            text = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
        elif keys := BESIDE.get(character.lower()):
            text = text[:place] + random.choice(keys) + text[place + 1 :]
    return text
