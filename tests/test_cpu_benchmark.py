"""The CPU benchmark runs, and the results that are kept say where they come from and what they reach."""

import json

from benchmarks import cpu_batchnorm


def test_kept_results_say_where_they_come_from():
    report = json.loads(cpu_batchnorm.RESULTS.read_text())
    assert all(report[key] for key in ("device", "cpu", "cores", "torch", "python", "date", "command"))


def test_kept_results_cover_every_case_and_reach_what_is_wanted():
    for run in json.loads(cpu_batchnorm.RESULTS.read_text())["runs"]:
        assert [(row["layout"], tuple(row["shape"])) for row in run["rows"][::4]] == cpu_batchnorm.CASES
        assert [row for row in run["rows"] if row["wanted"] and row["ratio"] > row["wanted"]] == []


def test_it_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpu_batchnorm, "CASES", [("contiguous", (4, 3, 5, 5))])
    cpu_batchnorm.main(["--rounds", "2", "--threads", "1", "--output", str(tmp_path / "results.json")])
    [run] = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert len(run["rows"]) == 4 and all(row["ours_ms"] > 0 for row in run["rows"])
    assert "train forward + backward" in capsys.readouterr().out
