import json
import subprocess
import sys
import time

import pytest

from halfbyte.data.records import load_records
from halfbyte.errors import DataError, MissingDependency


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return str(path)


def refused(source, *parts, error=DataError):
    with pytest.raises(error) as caught:
        load_records(source)
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


def test_jsonl_keeps_types_skips_blank_lines_and_names_lines(tmp_path):
    file = write(tmp_path / "a.jsonl", '\ufeff{"a": 15.0, "b": 3}\n\n  \n{"a": "15.0", "b": null}\r\n')
    records = load_records(file)
    assert [record.values for record in records] == [{"a": 15.0, "b": 3}, {"a": "15.0", "b": None}]
    assert isinstance(records[0].values["a"], float) and isinstance(records[0].values["b"], int)
    assert [record.origin for record in records] == [f"{file}:1", f"{file}:4"]


def test_jsonl_keeps_unusual_line_separators_inside_texts(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"a": "x\u2028y\u0085z"}\n{"a": "2"}\n')
    assert [record.values["a"] for record in load_records(file)] == ["x\u2028y\u0085z", "2"]


def test_every_bad_line_of_jsonl_is_named_at_once(tmp_path):
    lines = ['{"a": 1}', "{'a': 1}", "[1]", '{"a": NaN}', '{"a": 1}']
    text = refused(write(tmp_path / "a.jsonl", "\n".join(lines)), "no valid JSONL", "a.jsonl")
    assert "line 2: Expecting property name" in text
    assert "line 3: a list where an object is expected" in text
    assert "line 4: NaN is no JSON number" in text
    assert "line 1:" not in text and "line 5" not in text


def test_many_bad_lines_are_counted(tmp_path):
    refused(write(tmp_path / "a.jsonl", "x\n" * 9), "line 5", "and 4 more")


def test_json_list_names_the_line_of_each_item(tmp_path):
    file = write(tmp_path / "a.json", '[\n {"a": "x, ]"},\n\n {\n "a": [1, 2]}, {"a": 3}\n]')
    records = load_records(file)
    assert [record.origin for record in records] == [f"{file}:2", f"{file}:4", f"{file}:5"]
    assert records[1].values == {"a": [1, 2]}


def test_json_file_of_one_object_a_line_is_jsonl(tmp_path):
    assert len(load_records(write(tmp_path / "a.json", '{"a": 1}\n{"a": 2}\n'))) == 2


def test_json_that_is_no_list_of_objects(tmp_path):
    refused(write(tmp_path / "a.json", '{"data": []}'), "no list of records", "an object with the keys data")
    refused(write(tmp_path / "b.json", '[{"a": 1}, 2]'), "item 2: a number where an object is expected")
    refused(write(tmp_path / "c.json", "[1,"), "no valid JSON", "c.json")


def test_csv_values_are_texts_and_origins_are_first_lines(tmp_path):
    file = write(tmp_path / "a.csv", '\ufeffname,price\r\n"Big, ""red""\nset",15.00\r\n\r\nsmall,\r\n')
    records = load_records(file)
    assert [r.values for r in records] == [
        {"name": 'Big, "red"\nset', "price": "15.00"},
        {"name": "small", "price": ""},
    ]
    assert [r.origin for r in records] == [f"{file}:2", f"{file}:5"]


def test_csv_rows_with_other_numbers_of_fields_are_named(tmp_path):
    text = refused(write(tmp_path / "a.csv", "a,b\n1,2\n1\n1,2,3\n"), "rows and header don't fit together", "a.csv")
    assert "line 3: 1 fields where the header has 2" in text and "line 4: 3 fields where the header has 2" in text


def test_csv_faults(tmp_path):
    refused(write(tmp_path / "a.csv", "a,a\n1,2\n"), "two columns have the same name", "'a'")
    refused(write(tmp_path / "b.csv", "a;b\n1;2\n"), "not separated by commas", "a;b")
    refused(write(tmp_path / "c.csv", 'a,b\n"1" x,2\n'), "no valid CSV", "c.csv:2")
    refused(write(tmp_path / "d.csv", "a,b\nä,2\n", "latin-1"), "no UTF-8 text", "0xe4")


def test_long_csv_fields_and_tabs(tmp_path):
    long = "x" * 200_000
    assert load_records(write(tmp_path / "a.csv", f"a,b\n{long},2\n"))[0].values["a"] == long
    assert load_records(write(tmp_path / "a.tsv", "a\tb\n1,5\t2\n"))[0].values == {"a": "1,5", "b": "2"}


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = sys.modules["pyarrow"].table({"a": ["x", None], "b": [1.5, 2.0]})
    parquet.write_table(table, tmp_path / "a.parquet")
    records = load_records(str(tmp_path / "a.parquet"))
    assert [r.values for r in records] == [{"a": "x", "b": 1.5}, {"a": None, "b": 2.0}]
    assert records[1].origin.endswith("a.parquet:2")
    refused(write(tmp_path / "b.parquet", "no parquet"), "no valid Parquet", "b.parquet")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(write(tmp_path / "a.parquet", ""), "pip install 'halfbyte[data]'", error=MissingDependency)


def test_glob_is_sorted_and_takes_files_only(tmp_path):
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.jsonl", json.dumps({"name": name}))
    (tmp_path / "d.jsonl").mkdir()
    records = load_records(str(tmp_path / "*.jsonl"))
    assert [record.values["name"] for record in records] == ["a", "b", "c"]
    refused(str(tmp_path / "*.csv"), "no file matches the pattern", "*.csv")


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    assert len(load_records(write(tmp_path / "a[1].jsonl", '{"a": 1}'))) == 1


def test_missing_empty_and_unknown_files(tmp_path):
    write(tmp_path / "train.csv", "a\n1\n")
    refused(str(tmp_path / "trian.csv"), "no such file", "data files there: train.csv")
    refused(str(tmp_path / "no" / "a.csv"), "no such file", "no folder")
    refused(str(tmp_path / "a"), "no such file")
    refused(str(tmp_path), "a folder stands where", "train.csv", "*.jsonl")
    refused(write(tmp_path / "e.jsonl", "\n"), "holds no record")
    refused(write(tmp_path / "f.csv", "a,b\n"), "holds no record")
    refused(write(tmp_path / "g.csv", ""), "holds no record", "0 bytes")
    refused(write(tmp_path / "h.json", "[]"), "holds no record")
    refused(write(tmp_path / "i.xlsx", "x"), "not read", ".xlsx", ".jsonl")


class FakeHub:
    def __init__(self):
        self.calls = []

    def load_dataset(self, name, configuration, split):
        self.calls.append((name, configuration, split))
        if name == "nobody/nothing":
            raise FileNotFoundError("not on the hub\nmore")
        return [] if split == "empty" else [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("someone/set", ("someone/set", None, "train")),
        ("set", ("set", None, "train")),
        ("someone/set:main", ("someone/set", "main", "train")),
        ("someone/set:main:test", ("someone/set", "main", "test")),
    ],
)
def test_hub_data_set(monkeypatch, tmp_path, source, call):
    hub = FakeHub()
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.chdir(tmp_path)
    records = load_records(source)
    assert hub.calls == [call]
    assert [r.values for r in records] == [{"a": 1}, {"a": 2}]
    assert records[1].origin == f"{call[0]}:{call[2]}:2"


def test_hub_faults(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", FakeHub())
    refused("nobody/nothing", "neither a file nor a hub data set", "not on the hub", "id:configuration:split")
    refused("someone/set:main:empty", "holds no record", "split empty")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("someone/set", "pip install 'halfbyte[data]'", error=MissingDependency)


def test_datasets_library_reads_a_local_folder_the_same_way(tmp_path, monkeypatch):
    """The real library, offline: a folder with a script-free data set, through the function that reads hub ids."""
    datasets = pytest.importorskip("datasets")
    from halfbyte.data.records import _from_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "sets").mkdir()
    write(tmp_path / "sets" / "train.jsonl", '{"a": "x", "b": 1.5}\n{"a": "y", "b": 2.5}\n')
    monkeypatch.chdir(tmp_path)
    assert [record.values for record in _from_hub("sets", "train")] == [{"a": "x", "b": 1.5}, {"a": "y", "b": 2.5}]


def test_reading_and_filling_in_need_no_heavy_library():
    heavy = "{'torch', 'transformers', 'numpy', 'datasets', 'pyarrow'}"
    code = f"import sys, halfbyte.data.template, halfbyte.data.numbers; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_what_is_nested_without_end_is_refused(name, opening, tmp_path):
    refused(write(tmp_path / name, opening * 100_000), "nested too deeply")


def test_many_columns_take_no_time(tmp_path):
    started = time.process_time()
    file = write(tmp_path / "a.csv", ",".join(map(str, range(50_000))) + "\n" + "," * 49_999)
    assert len(load_records(file)[0].values) == 50_000
    assert time.process_time() - started < 2


def test_what_a_file_says_can_not_move_the_cursor(tmp_path):
    said = refused(write(tmp_path / "a.csv", "a\x1b[2J,a\x1b[2J\n1,2\n"), "two columns", "\\x1b[2J")
    assert "\x1b" not in said
