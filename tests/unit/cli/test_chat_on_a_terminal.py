"""The interactive chat on a real (pseudo-)terminal: the prompt, Ctrl-C where it matters, and leaving."""

from __future__ import annotations

from support.terminal import CTRL_C, CTRL_D, on_terminal

SCRIPTED = """
import windlass
from support.fake_engine import HANG, FakeEngine
windlass.MLCEngine = FakeEngine(["It was a dark ", HANG], ["Two."])
from windlass.cli import main
sys.exit(main(["chat"]))
"""


def test_ctrl_c_stops_an_answer_that_hangs_and_keeps_the_chat() -> None:
    with on_terminal(SCRIPTED) as terminal:
        assert "Chatting with the demo model." in terminal.expect_prompt()
        terminal.type("a story\n")
        terminal.expect("It was a dark ")
        terminal.type(CTRL_C)
        terminal.expect("(stopped)")
        terminal.expect_prompt()
        terminal.type("1 + 1\n")
        terminal.expect("Two.")
        terminal.expect_prompt()
        terminal.type("/stats\n")
        terminal.expect("all answers (1): 10 prompt tokens, 1 answer tokens")
        terminal.expect_prompt()
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.rest


def test_ctrl_c_twice_at_the_prompt_leaves() -> None:
    with on_terminal(SCRIPTED) as terminal:
        terminal.expect_prompt()
        terminal.type("half a line" + CTRL_C)
        terminal.expect("leaves.")
        terminal.expect_prompt()
        terminal.type(CTRL_C)
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.rest


def test_ctrl_c_in_a_single_answer_exits_130() -> None:
    with on_terminal(SCRIPTED.replace('["chat"]', '["chat", "-p", "a story"]')) as terminal:
        terminal.expect("It was a dark ")
        terminal.type(CTRL_C)
        assert terminal.wait() == 130
        assert "Traceback" not in terminal.rest
