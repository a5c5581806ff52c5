"""CSV text is read back as it was, by Python and by pandas."""

import csv
import io

import pandas as pd

from manifests.csvtext import csv_lines

ROWS = [
    ("file", "label"),
    ("a\rb.wav", "plain"),
    ("a\nb.wav", "a, b"),
    ("a\r\nb.wav\r", 'the "bell"'),
    ("\r\n", "ends\r\n"),
    ("é.wav", "1"),
]


def test_every_line_end_in_a_name_is_read_back() -> None:
    text = csv_lines(ROWS)
    assert [tuple(row) for row in csv.reader(io.StringIO(text, newline=""))] == ROWS
    table = pd.read_csv(io.BytesIO(text.encode()), dtype=str)
    assert [tuple(table.columns), *table.itertuples(index=False, name=None)] == ROWS


def test_rows_end_with_a_line_feed_and_plain_cells_are_not_quoted() -> None:
    assert csv_lines([("a", 1, None), ("b c", 0.5, "")]) == "a,1,\nb c,0.5,\n"
    assert csv_lines([]) == ""
