"""Faults in the terminal chat and in dialogues that outgrow the context."""

from __future__ import annotations

from teeth.mutant import fault

CHAT = "terminal/test_terminal_chat.py"
CONVERSATION = "terminal/test_conversation.py"
DIALOGUE = "sessions/test_chat.py"

TERMINAL_FAULTS = (
    fault(
        "the first Ctrl-C leaves",
        "src/llama2q/terminal/interrupts.py",
        "if n_interrupts > 1:",
        "if n_interrupts > 0:",
        f"{CHAT}::test_the_first_stops_the_answer",
    ),
    fault(
        "Ctrl-C stays with the chat after an answer",
        "src/llama2q/terminal/interrupts.py",
        "        signal.signal(signal.SIGINT, before)\n",
        "        pass\n",
        f"{CHAT}::test_the_first_stops_the_answer",
    ),
    fault(
        "the second Ctrl-C does not leave",
        "src/llama2q/terminal/chat.py",
        'self._was_interrupted = done.finish_reason == "abort"',
        "self._was_interrupted = False",
        f"{CHAT}::test_the_second_leaves",
    ),
    fault(
        "every answer has the same seed",
        "src/llama2q/terminal/chat.py",
        "seed=(params.seed + self._n_answers) % 2**64",
        "seed=params.seed",
        f"{CHAT}::test_retry_draws_anew",
        f"{CHAT}::test_turns",
    ),
    fault(
        "a stopped retry loses the answer",
        "src/llama2q/terminal/chat.py",
        "                self.conversation.turns.append(turn)\n",
        "                pass\n",
        f"{CHAT}::test_a_stopped_retry_keeps_the_answer",
    ),
    fault(
        "control characters reach the terminal",
        "src/llama2q/terminal/chat.py",
        'if unicodedata.category(c) == "Cc" and',
        'if unicodedata.category(c) == "Cs" and',
        f"{CHAT}::test_control_characters_are_shown",
    ),
    fault(
        "a saved chat that all can read",
        "src/llama2q/files.py",
        "_NEW, 0o600)",
        "_NEW, 0o644)",
        f"{CONVERSATION}::test_only_its_owner_reads_it",
    ),
    fault(
        "a history that all can read",
        "src/llama2q/terminal/lines.py",
        "            os.fchmod(file.fileno(), 0o600)\n",
        "            pass\n",
        "terminal/test_lines.py::test_the_history_is_private",
    ),
    fault(
        "what was left behind comes back",
        "src/llama2q/sessions/dialogue.py",
        "        self._left = [_pair(turn) for turn in turns[:n_left]]\n",
        "",
        f"{DIALOGUE}::test_the_oldest_turns_are_left_behind",
    ),
    fault(
        "another dialogue begins late",
        "src/llama2q/sessions/dialogue.py",
        "[_pair(turn) for turn in turns[:n_left]] != self._left",
        "False",
        f"{DIALOGUE}::test_another_dialogue_begins_whole",
    ),
)
