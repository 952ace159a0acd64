"""What a run shows: in a pipe, and on a real (pseudo) terminal."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
import time

import pytest

from rlx.run.console import ConsoleSink, EvaluationLine, Progress, format_duration, format_value, sections


def row(steps, wall_time, **metrics):
    return {"env_steps": steps, "iteration": steps // 100, "wall_time": wall_time, **metrics}


def test_plain_lines_say_how_far_how_fast_and_how_good():
    stream = io.StringIO()
    console = ConsoleSink(1000, "ppo on CartPole", stream=stream, interval_s=0)
    console.message("run directory: runs/x")
    console.write(row(100, 2.0, **{"episode/return": 21.456, "loss/total": 0.01, "other": 1}))
    console.write(row(300, 4.0, **{"episode/return": 180.0, "eval/return": 500.0, "loss/total": 3}))
    console.write(row(1000, 11.0, **{"episode/return": None}))
    console.close()
    assert stream.getvalue().splitlines() == [
        "run directory: runs/x",
        " 10% | 100 / 1,000 steps | episode/return 21.46 | loss/total 0.01",
        " 30% | 300 / 1,000 steps | 100 steps/s | 0:07 left | episode/return 180.0 | eval/return 500.0 | loss/total 3",
        "100% | 1,000 / 1,000 steps | 100 steps/s | episode/return 180.0 | eval/return 500.0 | loss/total 3",
    ]


def test_rows_that_come_too_fast_are_passed_over_but_the_first_and_the_last_are_shown():
    stream = io.StringIO()
    console = ConsoleSink(1000, stream=stream, interval_s=1e9)
    for steps in range(100, 1001, 100):
        console.write(row(steps, steps / 100))
    console.close()
    console.close()
    assert [line.split(" | ")[0] for line in stream.getvalue().splitlines()] == [" 10%", "100%"]


def test_lines_become_rarer_as_a_run_grows_old(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    console = ConsoleSink(10**9, stream=stream)
    shown = {}
    for now in [*range(0, 60), *range(3600, 3660), *range(864000, 864120)]:
        before = stream.tell()
        console.write(row(int(now) + 1, now + 1.0))
        shown[now] = stream.tell() > before
    assert sum(shown[now] for now in range(0, 60)) == 60
    assert sum(shown[now] for now in range(3600, 3660)) == 1
    assert sum(shown[now] for now in range(864000, 864120)) == 2


def test_an_evaluation_says_how_far_it_is_once_it_takes_long(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    shown = []
    with EvaluationLine(100, stream=stream) as line:
        for now in range(0, 3600):
            before = stream.tell()
            line(now // 50, now * 1000)
            if stream.tell() > before:
                shown.append(now)
    assert shown[:5] == [10, 20, 40, 80, 140]
    assert shown[-1] - shown[-2] == 60
    assert stream.getvalue().splitlines()[2] == "0 of 100 episodes | 40,000 steps | 0:40"

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    now, terminal = 0.0, Terminal()
    with EvaluationLine(100, stream=terminal) as line:
        for now in (0.5, 1.9, 2.1, 2.2, 3.0):
            line(int(now), 1000)
    assert terminal.getvalue().split("\r\x1b[K") == [
        "",
        "2 of 100 episodes | 1,000 steps | 0:02",
        "3 of 100 episodes | 1,000 steps | 0:03",
        "",
    ]


def test_a_reader_that_has_gone_does_not_end_the_run():
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    console = ConsoleSink(1000, stream=stream, interval_s=0)
    console.write(row(100, 1.0))
    console.message("still here")
    console.close()
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_speed_is_that_of_the_last_seconds():
    progress = Progress(1000, start_steps=500)
    assert progress.steps_per_second is None
    assert progress.seconds_left is None
    progress.update(row(501, 1.0))
    assert progress.steps_per_second is None  # the first row waited for the workers to start
    for second in range(2, 21):
        progress.update(row(500 + second, float(second)))
    progress.update(row(620, 21.0))
    assert progress.steps_per_second == pytest.approx((620 - 511) / 10)
    assert progress.seconds_left == pytest.approx(380 / 10.9)
    assert progress.fraction == 0.62
    progress.update(row(1300, 22.0))
    assert progress.fraction == 1.0
    assert progress.seconds_left == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.000251234, "0.0002512"),
        (3.1e-05, "3.1e-05"),
        (0.0, "0"),
        (-12.3456, "-12.35"),
        (475.0, "475.0"),
        (1234.56, "1,234.6"),
        (151234.5, "151,234"),
        (1_000_000, "1,000,000"),
        (7, "7"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (1e20, "1e+20"),
        ("text", "text"),
        (True, "True"),
        (None, ""),
    ],
)
def test_numbers_are_shown_as_people_read_them(value, text):
    assert format_value(value) == text


def test_time_spans():
    shown = [format_duration(seconds) for seconds in (0.4, 59.6, 750, 11100, 184_000)]
    assert shown == ["0:00", "1:00", "12:30", "3:05:00", "2d 03:06:40"]


def test_metrics_are_grouped_by_section_with_episodes_first():
    found = sections(
        row(1, 1.0, lr=1, **{"loss/a": 1, "a/b/c": 2, "eval/return": 3, "episode/return": 4, "x/no": None})
    )
    assert list(found.items()) == [
        ("episode", [("return", "4")]),
        ("eval", [("return", "3")]),
        ("loss", [("a", "1")]),
        ("a/b", [("c", "2")]),
        ("", [("lr", "1")]),
    ]


CHILD = textwrap.dedent(
    """
    import sys
    from rlx.run.console import ConsoleSink
    console = ConsoleSink(100_000, "[bold]ppo[/] on CartPole")
    console.message("run directory: runs/x")
    for steps in range(10_000, 100_001, 10_000):
        console.write({"env_steps": steps, "iteration": steps, "wall_time": steps / 20_000,
                       "episode/return": steps / 250, "loss/policy": -0.5, "loss/value": 0.25,
                       "a_long_name_without_a_section": 1.0})
    print("the environment prints")
    if "fail" in sys.argv:
        try:
            raise KeyboardInterrupt
        finally:
            console.close()
    console.close("done: mean return 400.0")
    """
)


def on_terminal(*arguments, columns=100, lines=40, pipe_stdout=False, term="xterm-256color"):
    """Run the child on a terminal, and return what the terminal got, what standard output got, and the status."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        stdin=slave,
        stdout=subprocess.PIPE if pipe_stdout else slave,
        stderr=slave,
        env={**environment, "TERM": term},
    )
    os.close(slave)
    shown = bytearray()
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    output, _ = child.communicate(timeout=30)
    return shown.decode(), (output or b"").decode(), child.returncode


def final_view(shown):
    """Return the lines that were drawn last, without colours and cursor movements."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.replace("\r", "\n"))
    text = plain[plain.rfind("ppo") :]
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_a_terminal_gets_a_live_view_that_stays_when_it_ends():
    shown, _, status = on_terminal()
    assert status == 0
    assert "\x1b[?25l" in shown  # the cursor is hidden while the view is renewed
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")  # and comes back
    assert "run directory: runs/x" in shown
    assert "the environment prints" in shown
    assert "[bold]ppo[/] on CartPole" in shown  # text is text, not markup
    view = final_view(shown)
    assert re.fullmatch(r"ppo\[/\] on CartPole  ━+  100%  0:0\d", view[0])
    assert view[1:] == [
        "100,000 / 100,000 steps  20,000 steps/s",
        "episode            loss",
        "return  400.0      policy  -0.5      a_long_name_without_a_section  1",
        "                   value   0.25",
        "done: mean return 400.0",
    ]


def test_a_narrow_terminal_gets_no_line_that_wraps():
    shown, _, status = on_terminal(columns=40)
    assert status == 0
    assert max(len(line) for line in final_view(shown)[1:-1]) <= 40


def test_an_interrupt_gives_the_terminal_back():
    shown, _, status = on_terminal("fail")
    assert status != 0
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")
    assert "KeyboardInterrupt" in shown[shown.rfind("\x1b[?25h") :]


def test_standard_output_in_a_pipe_holds_only_what_was_printed():
    shown, output, _ = on_terminal(pipe_stdout=True)
    assert output == "the environment prints\ndone: mean return 400.0\n"
    assert "100%" in shown


def test_a_dumb_terminal_and_a_pipe_get_plain_lines():
    shown, _, _ = on_terminal(term="dumb")
    assert "\x1b" not in shown
    assert "100% | 100,000 / 100,000 steps" in shown
    piped = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=30)
    assert piped.stdout == "the environment prints\ndone: mean return 400.0\n"
    lines = piped.stderr.splitlines()
    assert lines[0] == "run directory: runs/x"
    assert lines[1].startswith(" 10% | 10,000 / 100,000 steps | episode/return 40")
    assert lines[-1].startswith("100% | 100,000 / 100,000 steps")
    assert piped.stderr.isascii()


def test_rich_is_imported_only_for_a_terminal():
    script = "import sys, rlx.run.console; assert not {'rich', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


def test_a_row_about_the_past_does_not_turn_progress_back() -> None:
    stream = io.StringIO()
    console = ConsoleSink(1_000, stream=stream, live=False, interval_s=0)
    for entry in (row(200, 1.0), row(300, 2.0), row(200, 2.5, **{"eval/return": 7.0})):
        console.write(entry)
    console.close()
    assert stream.getvalue().splitlines()[-1] == " 30% | 300 / 1,000 steps | 100 steps/s | 0:07 left | eval/return 7"
