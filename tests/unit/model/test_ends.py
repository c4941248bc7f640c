"""A text ends at each of a model's ends: in sampling, in warnings, in what is saved."""

import json

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import AddedToken, AutoModelForCausalLM, PreTrainedTokenizerFast

from llmft.config.fields import GenerationModelArguments
from llmft.model.ends import ends_of, length, set_ends
from llmft.tasks import generate

EOS, TURN = "<|endoftext|>", "<|turn|>"


@pytest.fixture(scope="module")
def tokenizer():
    """One whose template ends turns with another token than its eos."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=tiny.bpe_tokenizer().backend_tokenizer
    )
    made.add_special_tokens({"additional_special_tokens": [TURN]})
    made.eos_token = made.pad_token = EOS
    made.chat_template = tiny.CHAT_TEMPLATE.replace("{{ eos_token }}", TURN)
    return made


@pytest.fixture
def model(tokenizer):
    return tiny.model("gpt2", "causal-lm", len(tokenizer))


@pytest.mark.parametrize("own", [None, 4, [1, 4]])
@pytest.mark.parametrize("chat", [False, True])
def test_all_ends_count_and_are_saved(model, tokenizer, tmp_path, own, chat):
    model.generation_config.eos_token_id = own
    wanted = {
        tokenizer.eos_token_id,
        *([4] if own else []),
        *([1] if own == [1, 4] else []),
    }
    wanted |= {tokenizer.convert_tokens_to_ids(TURN)} if chat else set()
    for _ in range(2):  # the second time changes nothing
        set_ends(model, tokenizer, chat)
        assert ends_of(model) == sorted(wanted)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert ends_of(again) == sorted(wanted)


def test_a_model_without_an_end_is_saved_as_it_is(model, tmp_path):
    """An empty list would break its generate."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny.bpe_tokenizer().backend_tokenizer
    )
    model.generation_config.eos_token_id = None
    set_ends(model, tokenizer, False)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config.eos_token_id is None
    assert again.generate(torch.tensor([[1, 2]]), max_new_tokens=2).shape == (1, 4)


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (tiny.CHAT_TEMPLATE.replace("{{ eos_token }}", "<added>"), True),
        (tiny.CHAT_TEMPLATE.replace("{{ eos_token }}", "#"), False),
        ("{{ '<added>' }}{% for m in messages %}{{ m['content']|upper }}{% endfor %}",
         False),
        ("{{ raise_exception('no system turn') }}", False),
    ],
    ids=["added", "no token", "not as said", "refused"],
)  # fmt: skip
def test_what_ends_a_turn_is_a_special_token_behind_the_answer(model, template, ends):
    """Also one that only the list of added tokens knows."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny.bpe_tokenizer().backend_tokenizer, eos_token=EOS
    )
    tokenizer.add_tokens([AddedToken("<added>", special=True)])
    tokenizer.chat_template = template
    model.generation_config.eos_token_id = None
    set_ends(model, tokenizer, True)
    wanted = {EOS, *(["<added>"] if ends else [])}
    assert {*tokenizer.convert_ids_to_tokens(ends_of(model))} == wanted


def test_nothing_is_written_behind_any_end(model, tokenizer):
    """A model that says its second end at once wrote on to max_new_tokens."""
    model.generation_config.eos_token_id = [1, 4]
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.ln_f.weight.zero_()
        model.lm_head.weight.zero_()
        model.lm_head.weight[4] = 1.0
    args = GenerationModelArguments(prompt=["the film"], max_new_tokens=9)
    written, own = [], model.generate
    model.generate = lambda **given: written.append(own(**given)) or written[-1]
    generate.sample(model, tokenizer, args, 1)
    before = tokenizer("the film", return_tensors="pt")["input_ids"]
    assert written[0][:, before.shape[1] :].tolist() == [[4]]


def test_a_length_is_up_to_the_first_end():
    ids = torch.tensor([5, 6, 0, 0])
    assert [length(ids, ends) for ends in ([0], [9, 0], [6, 0], [9], [])] == [
        *(3, 3, 2, 4, 4)
    ]


@pytest.mark.parametrize(
    ("labels", "warned"),
    [([[-100, 7, TURN], [-100, 8]], False), ([[-100, 7, EOS]], False),
     ([[-100, 7], [-100, 8]], True), (None, False)],
)  # fmt: skip
def test_turns_without_an_end_are_warned_of(model, tokenizer, capsys, labels, warned):
    named = {name: tokenizer.convert_tokens_to_ids(name) for name in (TURN, EOS)}
    columns = {"input_ids": [[5]] * len(labels or [5])}
    if labels:
        columns["labels"] = [[named.get(i, i) for i in row] for row in labels]
    set_ends(model, tokenizer, True, {"train": Dataset.from_dict(columns)})
    said = capsys.readouterr().err
    assert ("train: no turn of the assistant ends with" in said) is warned
    if warned:
        assert f"{EOS!r}, {TURN!r}, so that the model does not learn to stop" in said


def test_the_saved_generation_config_is_json(model, tokenizer, tmp_path):
    set_ends(model, tokenizer, True)
    model.save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "generation_config.json").read_text())
    assert kept["eos_token_id"] == ends_of(model)
