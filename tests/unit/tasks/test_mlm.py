"""Words that a masked language model fills in, before and after training."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from datasets import Dataset

from llmft.config.fields import MaskedLMDataArguments, ModelArguments, TrainingArguments
from llmft.data.tokens.collate import SeededDataCollatorForLanguageModeling
from llmft.tasks import mlm
from llmft.tasks.mlm import cloze_examples, fill_masks, show_filled
from llmft.train.objectives import MaskedLM
from llmft.train.trainer import LlmftTrainer


@pytest.fixture
def cloze(wordpiece):
    """Return ``cloze_examples`` of ``wordpiece``, and of seed 3 and length 64."""

    def made(data, count, seed=3, max_seq_length=64):
        args = MaskedLMDataArguments(num_examples=count, max_seq_length=max_seq_length)
        return cloze_examples(data, wordpiece, args, seed)

    return made


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"mlm_masking": "span", "geometric_p": 0.3, "max_span_length": 4}, ""),
        ({"mlm_masking": "token"}, ""),
        ({"mlm_masking": "whole_word", "geometric_p": 0.3}, "geometric_p"),
        ({"geometric_p": 0.3, "max_span_length": 4}, "geometric_p, max_span_length"),
    ],
)
def test_settings_of_spans_need_spans(given, named):
    values = vars(MaskedLMDataArguments()) | vars(TrainingArguments(use_cpu=True))
    values |= vars(ModelArguments("m")) | {"train_file": "a.txt", **given}
    said = [problem for problem in mlm.check(values) if "span" in problem]
    wanted = f"{named} without mlm_masking span has no effect"
    assert said == [wanted] * bool(named)


def test_cloze_masks_one_known_word(cloze, wordpiece, capsys):
    long = tiny.sentences(1, words=30)[0]
    data = Dataset.from_dict(
        {
            "text": [
                "too short film",
                "λλλλ λλλλ λλλλ λλλλ λλλλ λλλλ",  # alphabetic, but unknown
                "to be the of in a is it",
                *tiny.sentences(6, seed=2),
                long,
            ]
        }
    )
    found = cloze(data, 20)
    assert len(found) == 7
    assert capsys.readouterr().out == (
        "7 of 20 fill-mask examples: no other text begins with 6 to 18 words in 64"
        " tokens, one of them a token by itself\n"
    )
    for text, word in found:
        assert text.split().count("[MASK]") == 1
        assert word.isalpha()
        assert len(wordpiece(word, add_special_tokens=False)["input_ids"]) == 1
        original = " ".join(word if w == "[MASK]" else w for w in text.split())
        assert any(source.startswith(original) for source in data["text"])
        assert len(text.split()) <= 18
    assert cloze(data, 20) == found
    assert cloze(data, 20, seed=4) != found
    capsys.readouterr()
    assert cloze(data, 3) == found[:3]
    assert cloze(data, 0) == []
    assert cloze(None, 3) == []
    assert capsys.readouterr().out == ""


def test_cloze_fits_the_length_and_has_one_mask(cloze, wordpiece):
    texts = [*tiny.sentences(20, words=30), *tiny.sentences(20, seed=1, words=3)]
    spelled = ["film film film film film " + "λx" * 200 + " good film"]
    masked = ["the film [MASK] was quite good and funny"] * 5
    data = Dataset.from_dict({"text": texts + spelled + masked})
    found = cloze(data, 100, max_seq_length=10)
    assert len(found) > 10
    for text, _ in found:
        ids = wordpiece(text)["input_ids"]
        assert 8 <= len(ids) <= 10
        assert ids.count(wordpiece.mask_token_id) == 1
    model = tiny.model("bert", "masked-lm", len(wordpiece), max_position_embeddings=10)
    guesses = fill_masks(model, wordpiece, found)
    assert all(len(guess.split(", ")) >= 3 for guess in guesses)


def test_fill_masks_gives_the_three_likeliest(wordpiece):
    model = tiny.model("bert", "masked-lm", len(wordpiece)).train()
    text = "the film was [MASK] and slow"
    found = fill_masks(model, wordpiece, [(text, "good"), (text, "bad")])
    inputs = wordpiece(text, return_tensors="pt")
    place = inputs["input_ids"][0].tolist().index(wordpiece.mask_token_id)
    with torch.no_grad():
        scores = model.eval()(**inputs).logits[0, place]
    wanted = [wordpiece.decode([i]) for i in scores.argsort(descending=True)[:3]]
    assert found == [", ".join(wanted)] * 2
    assert fill_masks(model, wordpiece, []) == []


def test_what_was_filled_in_is_shown_side_by_side_and_kept(capsys):
    kept = []
    run = SimpleNamespace(held_out="test", write_examples=lambda *x: kept.append(x))
    show_filled([("a [MASK]", "film")], ["the, a"], ["film, movie"], run)
    assert capsys.readouterr().out == (
        "\nfill-mask, on test\n"
        "  text      word  before  after\n"
        "  a [MASK]  film  the, a  film, movie\n"
    )
    show_filled([], [], [], run)
    assert capsys.readouterr().out == ""
    both = {"before": "the, a", "after": "film, movie"}
    assert kept == [("fill_mask", [{"text": "a [MASK]", "word": "film"} | both])]


def test_examples_before_and_after_come_in_one_precision(wordpiece, tmp_path):
    """accelerate wraps a model that it evaluates in autocast, for good."""
    model = tiny.model("bert", "masked-lm", len(wordpiece))
    quiet = {"report_to": "none", "disable_tqdm": True, "bf16": True}
    quiet |= {"eval_strategy": "no", "load_best_model_at_end": False}
    collator = SeededDataCollatorForLanguageModeling(wordpiece)
    ids = [wordpiece(text)["input_ids"] for text in tiny.sentences(4)]
    trainer = LlmftTrainer(
        objective=MaskedLM(),
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), **quiet),
        data_collator=collator,
        eval_dataset=Dataset.from_dict({"input_ids": ids, "row": [0, 1, 2, 3]}),
    )
    seen = []
    layer = model.bert.encoder.layer[0].output.dense
    layer.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    examples = [("the [MASK] film was good", "old")]
    before = fill_masks(model, wordpiece, examples)
    trainer.evaluate()
    assert seen[-1] == torch.bfloat16
    wrapped = model.forward
    assert fill_masks(model, wordpiece, examples) == before
    assert (seen[0], seen[-1]) == (torch.float32,) * 2
    assert model.forward == wrapped
