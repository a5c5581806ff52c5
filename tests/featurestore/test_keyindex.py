"""Keys to rows, as a dictionary would."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import keyindex
from featurestore.keyindex import KeyIndex

KEYS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "é", "as_x_000000001", "as_x_000000002"]) | st.text(min_size=1))


@given(KEYS, st.text())
def test_the_last_row_of_a_key_counts(keys: list[str], other: str) -> None:
    index, rows = KeyIndex(pa.array(keys, pa.string())), {key: row for row, key in enumerate(keys)}
    assert {key: index.row_of(key) for key in keys} == rows
    assert index.row_of(other) == rows.get(other)


@given(KEYS)
def test_keys_with_one_hash_are_told_apart(keys: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyindex, "hash", len, raising=False)
        patch.setattr(keyindex, "KEYS_A_PIECE", 2)
        index = KeyIndex(pa.array(keys, pa.string()))
        assert {key: index.row_of(key) for key in keys} == {key: row for row, key in enumerate(keys)}
        assert index.row_of("cd") is None
