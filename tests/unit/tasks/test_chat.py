"""``llmft chat`` with a tiny model: what it is given, and when it ends."""

import io

import pytest
import tiny
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmft import cli
from llmft.errors import ConfigError, DataFormatError
from llmft.process import libraries_as_before
from llmft.tasks import chat

PLAIN = ("--num_threads", "1", "--precision", "fp32", "--max_new_tokens", "4")
GREEDY = (*PLAIN, "--temperature", "0", "--repetition_penalty", "1")


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """Folder of a tiny causal model with a chat template."""
    folder = tiny.save(tmp_path_factory.mktemp("talker"), "gpt2", "causal-lm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def llmft_chat(monkeypatch):
    def call(said, *argv):
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        with libraries_as_before():
            cli._run(["chat", *map(str, argv)])

    return call


def answers_of(folder, *turns, system=None):
    """The greedy answers of transformers alone, to turns one after the other."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "system", "content": system}] if system else []
    found = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt"
        )
        new = model.generate(**ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        text = tokenizer.decode(new[0, ids["input_ids"].shape[1] :])
        found.append(text.replace("<|endoftext|>", ""))
        messages.append({"role": "assistant", "content": found[-1]})
    return found


def test_the_model_hears_all_that_was_said(talker, llmft_chat, monkeypatch):
    heard = []
    answer = chat.Conversation.answer
    monkeypatch.setattr(
        chat.Conversation, "answer", lambda self, x: heard.append(answer(self, x))
    )
    llmft_chat("a film\n\nwas sad\nexit\nnot this\n", talker, *GREEDY)
    assert heard == answers_of(talker, "a film", "was sad")
    heard.clear()
    llmft_chat("a film", talker, *GREEDY, "--system_prompt", "be dull")
    assert heard == answers_of(talker, "a film", system="be dull")


def test_answers_are_printed_without_control_characters(talker, llmft_chat, capsys):
    llmft_chat("a film\n", talker, *GREEDY)
    out = capsys.readouterr().out
    assert out.startswith("the tokenizer has no pad token")
    assert all(c.isprintable() or c == "\n" for c in out)


def test_the_oldest_turns_go_where_there_is_no_room(talker, llmft_chat, capsys):
    turns = [" ".join(tiny.WORDS[i : i + 8]) for i in range(5)]
    llmft_chat("\n".join(turns), talker, *GREEDY)
    assert capsys.readouterr().out.count("the oldest turns are left out") >= 2
    with pytest.raises(ConfigError, match="exceed the model's 64 positions"):
        llmft_chat(" ".join(tiny.WORDS * 2), talker, *GREEDY)


def test_models_that_do_not_talk_are_refused(
    talker, tiny_gpt2, tiny_bert, llmft_chat, tmp_path
):
    with pytest.raises(ConfigError, match=r"no chat template.*llmft generate"):
        llmft_chat("a\n", tiny_gpt2)
    with pytest.raises(ConfigError, match=r"does fill-mask.*llmft predict"):
        llmft_chat("a\n", tiny_bert)
    llmft_chat("", talker, "--do_sample", *PLAIN)  # as a recipe takes it
    with pytest.raises(ConfigError, match="temperature is '-1'"):
        llmft_chat("a\n", talker, "--temperature=-1")
    template = tmp_path / "template.jinja"
    template.write_text(tiny.CHAT_TEMPLATE)
    llmft_chat("a\n", tiny_gpt2, *PLAIN, "--chat_template_path", template)


def test_a_template_that_refuses_a_turn_is_told_in_a_line(talker, llmft_chat, tmp_path):
    template = "{% if messages[0]['role'] == 'system' %}"
    template += "{{ raise_exception('no system role') }}{% endif %}x"
    (tmp_path / "t.jinja").write_text(template)
    flags = (
        "--chat_template_path",
        tmp_path / "t.jinja",
        "--system_prompt",
        "Be brief",
    )
    with pytest.raises(DataFormatError, match="no system role"):
        llmft_chat("hello\n", talker, *flags, *GREEDY)


def test_an_adapter_talks_like_a_model(talker, llmft_chat, tmp_path, capsys):
    """One that peft saved, in a folder of its own."""
    model = AutoModelForCausalLM.from_pretrained(talker)
    adapter = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM"))
    adapter.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(talker).save_pretrained(tmp_path / "adapter")
    llmft_chat("hello\n", tmp_path / "adapter", *GREEDY)
    assert "merged into" in capsys.readouterr().out
