"""``llmft chat``: a conversation with a causal model on the terminal.

``transformers chat`` asks a server; here the model is in this process, in the form in
which it writes fastest, and nothing needs a network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from llmft.config.command_line import words_of
from llmft.config.facts import fields_of, from_flags
from llmft.config.fields import GenerationModelArguments, TrainingArguments
from llmft.console import say, warn
from llmft.data.read.messages import MESSAGES
from llmft.data.tokens.chat import Layout
from llmft.errors import ConfigError, DataError, EncodingError
from llmft.machine import choose
from llmft.model.ends import ends_of, set_ends
from llmft.model.load import load_model, load_tokenizer
from llmft.model.probes import position_limit, require_causal
from llmft.process import quiet_libraries
from llmft.tasks import generate
from llmft.tasks.fast_writing import made_fast
from llmft.tasks.named import Named, find_model
from llmft.tasks.predictors import cpu_arguments

CLASSES = (GenerationModelArguments, TrainingArguments)
FLAGS = [
    *("chat_template_path", "max_new_tokens", "do_sample", "temperature", "top_k"),
    *("top_p", "repetition_penalty", "no_repeat_ngram_size"),
    *("precision", "num_threads", "seed"),
]
END = "exit"
_CUT = "  (the oldest turns are left out: the model has no room for them)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of ``llmft chat``."""
    said = "a run or its name, a folder, hub id or pypi:NAME of a chat model"
    parser.add_argument("model", metavar="RUN_OR_MODEL", help=said)
    parser.add_argument("--system_prompt", help="what the model is told beforehand")
    fields = fields_of(*CLASSES)
    for name in FLAGS:
        said = f"{fields[name].facts['help']} (default: {fields[name].default})"
        words = words_of(fields[name])
        said = said.replace("%", "%%")
        parser.add_argument(f"--{name}", metavar="VALUE", help=said, **words)


def run(arguments: argparse.Namespace) -> None:
    """Talk until the input ends, or is ``exit``.

    Raises:
        ConfigError: arguments are wrong, or the model knows no conversations.
    """
    given, problems = from_flags({n: getattr(arguments, n) for n in FLAGS}, *CLASSES)
    if problems:
        raise ConfigError(*problems)
    if sys.stdin is None:
        raise DataError("standard input is closed")
    quiet_libraries()  # those that came with this module
    named = find_model(arguments.model)
    talk = Conversation(named, given, arguments.system_prompt)
    shown = sys.stdin.isatty()
    if shown:
        say(f"\n{END} or Ctrl-D ends; the model remembers what was said")
    for line in _lines(shown):
        if line.strip() == END:
            break
        if line.strip():
            talk.answer(line)


def _lines(shown: bool) -> Iterator[str]:
    """Yield what the user types, or the lines of a file, up to the end."""
    if shown:
        import readline  # noqa: F401 (arrow keys and the last lines in ``input``)
    while True:
        try:
            yield input("\n> " if shown else "")
        except UnicodeDecodeError as error:
            said = f"standard input is not {error.encoding}"
            raise EncodingError(said, hint="write it as UTF-8") from None
        except EOFError:
            if shown:
                say()
            return


class Conversation:
    """A model, and what was said so far."""

    def __init__(self, named: Named, given: dict[str, Any], system: str | None) -> None:
        located, name = named.located, named.located.name
        if named.task.recipe != generate.TASK.recipe:
            said = f"this model does {named.task.pipeline_tag}, it does not talk"
            raise ConfigError(f'{said}; use `llmft predict {name} --text "..."`')
        fields = fields_of(GenerationModelArguments)
        known = {**vars(named.args), **given}
        args = GenerationModelArguments(
            **{n: x for n, x in known.items() if n in fields}
        )
        self.args = args
        of_training = fields_of(TrainingArguments)
        training = cpu_arguments(**{n: x for n, x in given.items() if n in of_training})
        choose.prepare_machine(training)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(located, args)
        if not self.tokenizer.chat_template:
            raise ConfigError(
                "this model has no chat template, it continues texts; use `llmft"
                f' generate --model_name_or_path {name} --prompt "..."`, or give a'
                " --chat_template_path",
                path=name,
            )
        model = load_model(
            generate.TASK.auto_class, located, args, self.tokenizer, will_train=False
        )
        require_causal(model, name)
        self.model, choice = made_fast(model, training)
        say(f"{choice.name:<10} {choice.value} ({choice.reason})")
        set_ends(self.model, self.tokenizer, True)
        self.config = generate.generation_config(
            args, self.tokenizer, ends_of(self.model)
        )
        self.model.eval()
        set_seed(training.seed)
        self.messages: list[dict[str, str]] = []
        if system:
            self.messages.append({"role": "system", "content": system})
        self.first = len(self.messages)

    def answer(self, text: str) -> str:
        """Print the answer to a user's turn as it is written, and remember both."""
        self.messages.append({"role": "user", "content": text})
        ids = torch.tensor([self._fitting()], device=self.model.device)
        streamer = generate.Terminal(self.tokenizer, True, skip_special_tokens=True)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        written = generate.write(self.model, inputs, self.config, streamer)
        new = written[0, ids.shape[1] :]
        said = str(self.tokenizer.decode(new, skip_special_tokens=True))
        self.messages.append({"role": "assistant", "content": said})
        if not said.strip():
            warn("the answer is empty")
        return said

    def _fitting(self) -> list[int]:
        """Return the tokens of the conversation, without the oldest turns if needed.

        Raises ConfigError where not even the last turn has room.
        """
        limit, left_out = position_limit(self.model), False
        while True:
            text, _ = Layout(self.tokenizer, MESSAGES).render(
                self.messages, prompts=True
            )
            ids: Any = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            room = None if limit is None else limit - self.args.max_new_tokens
            if room is None or len(ids) <= room:
                if left_out:
                    say(_CUT)
                return ids
            if len(self.messages) - self.first < 3:
                raise ConfigError(
                    f"a turn of {len(ids):,} tokens and max_new_tokens"
                    f" {self.args.max_new_tokens} exceed the model's {limit} positions"
                )
            del self.messages[self.first : self.first + 2]
            left_out = True
