"""`TerminalChat`: reads lines, answers them, obeys commands."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from llama2q.errors import ClosedError, Llama2qError, MessagesError
from llama2q.generate.completion import Completion
from llama2q.generate.llama import Llama
from llama2q.memory import format_size
from llama2q.sampling import SamplingParams
from llama2q.sessions.window import WhenFull
from llama2q.terminal.commands import help_text, split
from llama2q.terminal.conversation import Conversation
from llama2q.terminal.interrupts import first_stops
from llama2q.terminal.lines import Lines

Note = Callable[[str], None]


class TerminalChat:
    """A conversation with a model, until the user leaves."""

    def __init__(
        self,
        llm: Llama,
        lines: Lines,
        note: Note,
        params: SamplingParams,
        *,
        system: str | None = None,
        strict: bool = True,
        template: str | None = None,
        when_full: WhenFull = "stop",
    ) -> None:
        """Begin; nothing is read or computed.

        Parameters
        ----------
        llm : Llama
        lines : Lines
        note : callable
            Shows a line that is not of an answer; answers go to stdout.
        params : SamplingParams
            With a seed, the answers of the chat get it and those that follow it.
        system : str or None
        strict, template
            See `Llama.chat`.
        when_full : {"stop", "slide"}
            See `Llama.session`.
        """
        self.conversation = Conversation(system)
        self._llm = llm
        self._lines = lines
        self._note = note
        self._params = params
        self._strict = strict
        self._template = template
        self._session = llm.session(when_full=when_full)
        self._when_full = when_full
        self._was_interrupted = False
        self._shown = visible if sys.stdout.isatty() else str
        self._n_answers = 0
        self._last: Completion | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/reset": self._reset,
            "/undo": self._undo,
            "/retry": self._retry,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._stats,
            "/help": lambda _: self._note(help_text()),
        }

    def run(self) -> None:
        """Read and answer until the end of the lines, /exit, or a second Ctrl-C."""
        with self._session:
            while True:
                try:
                    line = self._lines.read()
                    self._was_interrupted = False
                    if line.strip() in ("/exit", "/quit"):
                        return
                    self._take(line)
                except EOFError:
                    return
                except KeyboardInterrupt:
                    if self._was_interrupted:
                        return
                    self._was_interrupted = True
                    self._note("Ctrl-C again leaves; so does Ctrl-D.")
                except ClosedError:
                    raise
                except MessagesError as error:
                    self._note(f"error: {visible(str(error))}: begin the chat with --keep-tags")
                except (Llama2qError, OSError) as error:
                    self._note(f"error: {visible(str(error))}")

    def _take(self, line: str) -> None:
        command = split(line)
        if command is None:
            if line.strip():
                self._ask(line.lstrip())
            return
        name, argument = command
        if name not in self._commands:
            self._note(
                f"error: there is no command {visible(name):.40}; /help lists them. A text that "
                "begins with / needs a space before it"
            )
            return
        self._commands[name](argument)

    def _ask(self, question: str) -> bool:
        """Answer a question; return whether there is an answer, which is then a turn."""
        params = self._params
        if params.seed is not None:
            params = replace(params, seed=(params.seed + self._n_answers) % 2**64)
        stream = self._session.stream_chat(
            self.conversation.asking(question),
            params,
            strict=self._strict,
            template=self._template,
        )
        try:
            with first_stops(stream.close):
                for chunk in stream:
                    print(self._shown(chunk.text), end="", flush=True)
        except KeyboardInterrupt:
            self._was_interrupted = True
            raise
        finally:
            stream.close()
            print(flush=True)
        done = stream.completion
        self._n_answers += 1
        self._was_interrupted = done.finish_reason == "abort"
        if self._was_interrupted and not done.text:
            self._note("stopped before an answer; the question is taken back.")
            return False
        self._last = done
        self.conversation.turns.append((question, done.text))
        self._note(self._summary(done))
        return True

    def _summary(self, done: Completion) -> str:
        usage, timings = done.usage, done.timings
        n_computed = usage.prompt_tokens - usage.cached_tokens
        parts = [
            f"{usage.completion_tokens} tokens, {timings.tokens_per_second:.1f} tok/s",
            f"prompt {n_computed} new, {usage.cached_tokens} kept",
            self._context(),
        ]
        if done.finish_reason == "abort":
            parts.append("stopped; Ctrl-C again leaves")
        if done.finish_reason == "length":
            is_full = usage.completion_tokens != self._params.max_tokens
            parts.append("the context is full: /undo or /reset" if is_full else "cut by max-tokens")
        return f"[{'; '.join(parts)}]"

    def _context(self) -> str:
        used, n_ctx = len(self._session), self._llm.n_ctx
        return f"context {used} of {n_ctx} ({100 * used / n_ctx:.0f} %)"

    # --- commands ---------------------------------------------------------------------------------

    def _set_system(self, text: str) -> None:
        if text:
            self.conversation.system = None if text == "-" else text
        self._note(f"system prompt: {visible(self.conversation.system or 'none')}")

    def _reset(self, _: str) -> None:
        n_turns = len(self.conversation.turns)
        self.conversation.turns.clear()
        self._note(f"{n_turns} questions and answers forgotten.")

    def _undo(self, _: str) -> None:
        if not self.conversation.turns:
            self._note("error: there is nothing to take back")
            return
        question, _answer = self.conversation.turns.pop()
        self._note(f"taken back: {visible(question)}")

    def _retry(self, _: str) -> None:
        if not self.conversation.turns:
            self._note("error: there is no question to answer anew")
            return
        turn = self.conversation.turns.pop()
        has_answer = False
        try:
            has_answer = self._ask(turn[0])
        finally:
            if not has_answer:
                self.conversation.turns.append(turn)

    def _save(self, path: str) -> None:
        if not path:
            self._note("error: /save needs a path")
            return
        self.conversation.save(Path(path).expanduser())
        self._note(f"saved: {len(self.conversation.turns)} questions and answers.")

    def _load(self, path: str) -> None:
        if not path:
            self._note("error: /load needs a path")
            return
        self.conversation = Conversation.load(Path(path).expanduser())
        self._note(f"loaded: {len(self.conversation.turns)} questions and answers.")
        for question, answer in self.conversation.turns[-1:]:
            self._note(f"the last: {visible(question)}")
            print(self._shown(answer))

    def _stats(self, _: str) -> None:
        engine = self._llm.engine
        memory = format_size(psutil.Process().memory_info().rss)
        lines = [
            f"model: {engine.file.path.name}, {engine.n_threads} threads, {engine.isa}",
            f"{self._context()}, KV cache {engine.kv_dtype}, when full: {self._when_full}",
            f"memory of this process: {memory}, mapped weights among it",
            f"questions and answers: {len(self.conversation.turns)}",
        ]
        if self._last is not None:
            timings = self._last.timings
            lines.append(
                f"last answer: {self._last.usage.completion_tokens} tokens, "
                f"{timings.tokens_per_second:.1f} tok/s; prompt "
                f"{timings.prompt_tokens_per_second:.1f} tok/s; seed {self._last.seed}"
            )
        self._note("\n".join(lines))


def visible(text: str) -> str:
    """Escape control characters, which a terminal would obey, but for new lines and tabs."""
    if text.isprintable():
        return text
    return "".join(
        ascii(c)[1:-1] if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )
