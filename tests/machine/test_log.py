"""The log's lines."""

import os

from model_compound_scaling.machine.log import Log, say

NAME = os.fsdecode(b"caf\xe9\n\x1b[31m")
SHOWN = r"caf\xe9\n\x1b[31m"


def test_names_break_no_line_of_the_log(tmp_path, capsys):
    Log(tmp_path)(f"wrote {NAME}", "φ 日本")
    say(f"error: {NAME}")
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [f"wrote {SHOWN}", "φ 日本"]
    assert captured.err == f"error: {SHOWN}\n"
    lines = (tmp_path / "logfile.txt").read_bytes().decode().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == captured.out.splitlines()


def test_a_log_that_cannot_be_written_is_said_once(tmp_path, capsys):
    log = Log(tmp_path / NAME)
    log("one")
    log("two")
    captured = capsys.readouterr()
    assert captured.out == "one\ntwo\n"
    assert captured.err.count("\n") == 1 and SHOWN in captured.err
