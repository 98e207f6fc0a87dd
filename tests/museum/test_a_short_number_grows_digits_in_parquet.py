"""A number in a narrow parquet column grows digits that were never written.

Area: data
Elsewhere: found here
Before: 0.1 in a float32 column was learnt as 0.10000000149011612, in a float16 column as 0.0999755859375.
Here: it is read as the shortest decimal that is the same number in the type of its column.
Verdict: silent → right
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from llm_adapters_lab.tasks.registry import get_task


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_short_number_grows_digits_in_parquet(kind: type, tmp_path: Path) -> None:
    path, values = tmp_path / "x.parquet", np.array([0.1, -2.5, 1024], dtype=kind)
    parquet.write_table(pa.table({"instruction": ["a", "b", "c"], "output": pa.array(values)}), path)
    assert [row.output for row in get_task(f"own:{path}").load("train")] == ["0.1", "-2.5", "1024"]
    assert [row.answer for row in get_task(f"own:{path}?form=number").load("test")] == ["0.1", "-2.5", "1024"]
