"""Sampling is a function of the seed; what is printed is what is returned."""

import copy
import io
import itertools
import re
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig
from unit.machine.test_detect import PLAIN

from llmft.config.choice import Choice
from llmft.config.fields import GenerationModelArguments, TrainingArguments
from llmft.errors import ConfigError, NonFiniteError, escape
from llmft.machine import detect
from llmft.tasks import fast_writing, generate
from llmft.tasks.fast_writing import PackedLinear

EOS = "<|endoftext|>"
PROMPTS = ["the film was", "a director"]


@pytest.fixture(scope="module")
def writer():
    """A random GPT-2 and its tokenizer."""
    tokenizer = tiny.bpe_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tiny.model("gpt2", "causal-lm", len(tokenizer)), tokenizer


def arguments(*prompts, **changes):
    given = {"max_new_tokens": 20, **changes}
    return GenerationModelArguments(prompt=list(prompts or PROMPTS), **given)


def texts(writer, seed=1, *, prompts=(), stream=False, **changes):
    args = arguments(*prompts, **changes)
    return generate.sample(*writer, args, seed, stream=stream)


def test_the_seed_decides(writer):
    found = texts(writer, 1)
    assert [len(group) for group in found] == [1, 1]
    assert all(t[0].startswith(p) for t, p in zip(found, PROMPTS, strict=True))
    assert all(len(t[0]) > len(p) for t, p in zip(found, PROMPTS, strict=True))
    torch.rand(3)
    assert texts(writer, 1) == found
    assert texts(writer, 2) != found
    alone = texts(writer, 1, prompts=PROMPTS[1:])
    assert alone == found[1:]  # whatever was sampled before


def test_a_prompt_goes_through_the_chat_template(writer, capsys):
    model, tokenizer = writer[0], tiny.bpe_tokenizer()
    tokenizer.pad_token, tokenizer.chat_template = EOS, tiny.CHAT_TEMPLATE
    rendered = f"[system]help{EOS}\n[user]a film{EOS}\n[assistant]"
    ids = torch.tensor([tokenizer(rendered)["input_ids"]])
    greedy = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 8}
    ends = dict.fromkeys(("pad_token_id", "eos_token_id"), tokenizer.eos_token_id)
    plain = {"attention_mask": torch.ones_like(ids), **greedy, **ends}
    expected = model.generate(ids, **plain)
    answer = tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    chat = {"prompts": ("a film",), "apply_chat_template": True, **greedy}
    assert texts((model, tokenizer), **chat) == [
        [f"[user] a film [assistant] {answer}"]
    ]
    texts((model, tokenizer), **chat, stream=True)
    first = capsys.readouterr().out.partition("\nwritten")[0]
    assert first.strip() == f"[user] a film [assistant] {escape(answer)}".strip()
    with pytest.raises(ConfigError, match="exceed the model's 64 positions"):
        texts((model, tokenizer), **chat | {"max_new_tokens": 64 - len(ids[0]) + 1})
    with pytest.raises(ConfigError, match="no chat template to write conversations"):
        texts(writer, **chat)


@pytest.mark.parametrize("eos", ["</s>", "b"])
def test_an_end_that_the_tokenizer_appends_is_no_part_of_a_prompt(eos):
    """It would go on with another text; one that is written there stays."""
    tokenizer = tiny.bpe_tokenizer()
    tokenizer.add_special_tokens({"eos_token": eos})
    end = tokenizer.eos_token_id
    plain = tokenizer("a b", add_special_tokens=False)["input_ids"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, end)]
    )
    assert tokenizer("a b")["input_ids"] == [*plain, end]
    args = GenerationModelArguments()
    assert generate.prompt_ids("a b", tokenizer, args) == (
        plain if eos == "</s>" else [*plain, end]
    )


def test_beams_of_the_models_config_are_not_taken(writer):
    """They could not be streamed."""
    model, tokenizer = writer
    wanted = texts(writer, do_sample=False)
    model.generation_config.num_beams = 3
    assert texts((model, tokenizer), do_sample=False, stream=True) == wanted


def test_dropout_is_off(writer):
    writer[0].train()
    first = texts(writer, do_sample=False)
    writer[0].train()
    assert texts(writer, do_sample=False) == first
    assert not writer[0].training


def test_several_texts_of_a_prompt(writer):
    found = texts(writer, num_return_sequences=3)
    assert [len(group) for group in found] == [3, 3]
    assert len(set(found[0])) == 3


def test_greedy_takes_the_likeliest_token(writer):
    model, tokenizer = writer
    assert texts(writer, 1, do_sample=False) == texts(writer, 2, do_sample=False)
    found = texts(writer, do_sample=False, max_new_tokens=4, repetition_penalty=1.0)
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    for _ in range(4):
        with torch.no_grad():
            best = model(ids).logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, best], dim=1)
    assert found[0] == tokenizer.batch_decode(ids)


def test_no_pair_of_tokens_twice(writer, monkeypatch):
    """Greedy sampling of a random model repeats itself at once if it may."""
    model, generate, written = writer[0], writer[0].generate, []

    def record(**options):
        written.append(generate(**options))
        return written[-1]

    monkeypatch.setattr(model, "generate", record)

    def pairs(size):
        options = {"do_sample": False, "max_new_tokens": 40, "repetition_penalty": 1.0}
        texts(writer, no_repeat_ngram_size=size, **options)
        ids = written[-1][0].tolist()
        return len(ids) - 1, len(set(itertools.pairwise(ids)))

    count, different = pairs(0)
    assert different < count
    count, different = pairs(2)
    assert different == count > 20


def test_learnt_text_may_repeat_itself(writer):
    """By default, greedy sampling writes repeated token pairs as they were."""
    model, tokenizer = copy.deepcopy(writer[0]).eval(), writer[1]  # no dropout
    text = '[{"a": 1, "b": 0}, {"a": 2, "b": 0}, {"a": 3, "b": 0}]'
    ids = tokenizer(text + EOS, return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    greedy = {"prompts": ['[{"a": 1,'], "do_sample": False, "max_new_tokens": 50}
    assert texts((model, tokenizer), **greedy) == [[text]]
    assert texts((model, tokenizer), **greedy, no_repeat_ngram_size=2) != [[text]]


def test_tokens_that_are_there_are_penalized(writer):
    """Their scores are divided (multiplied below 0); a large penalty takes new ones."""
    model, tokenizer = writer[0].eval(), writer[1]
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    for _ in range(6):
        with torch.no_grad():
            scores = model(ids).logits[0, -1]
        there = torch.zeros_like(scores, dtype=torch.bool).index_fill(0, ids[0], True)
        lowered = torch.where(scores < 0, scores * 1.3, scores / 1.3)
        best = torch.where(there, lowered, scores).argmax()
        ids = torch.cat([ids, best.view(1, 1)], dim=1)
    options = {"do_sample": False, "max_new_tokens": 6}
    found = texts(writer, **options, repetition_penalty=1.3)
    assert found[0] == tokenizer.batch_decode(ids)
    assert found != texts(writer, **options, repetition_penalty=1.0)


def test_settings_reach_the_config(writer):
    args = arguments(temperature=0.5, top_k=7, top_p=0.6)
    config = generate.generation_config(args, writer[1], [3, 5])
    assert (config.temperature, config.top_k, config.top_p) == (0.5, 7, 0.6)
    assert config.eos_token_id == [3, 5]
    likeliest = texts(writer, do_sample=False)
    assert texts(writer, top_k=1) == likeliest
    assert texts(writer, temperature=1e-4) == likeliest
    assert texts(writer, temperature=0) == likeliest


def test_prompts_that_cannot_be_continued(writer):
    with pytest.raises(ConfigError, match="the prompt '' has no tokens"):
        texts(writer, prompts=["fine", ""])
    long = " ".join(["film"] * 50)
    length = len(writer[1](long)["input_ids"])
    message = (
        f"a prompt of {length} tokens and max_new_tokens 20 exceed the model's 64"
        " positions"
    )
    with pytest.raises(ConfigError, match=message):
        texts(writer, prompts=[long])
    assert texts(writer, prompts=[long], max_new_tokens=64 - length)


SPEED = r"\d+ tokens, [\d.]+ tokens/s, \d+ MiB peak\n"


def test_a_stream_prints_what_is_returned(writer, capsys):
    prompts = ["the \x1b[2Jfilm\nwas", "a man"]
    found = texts(writer, prompts=prompts, stream=True)
    said, written, speed = capsys.readouterr().out.rpartition("written    ")
    assert written
    assert re.fullmatch(SPEED, speed)
    assert "\x1b" not in said
    assert "the \\x1b[2Jfilm\nwas" in said
    shown = [
        "\n".join(escape(line) for line in group[0].split("\n")) for group in found
    ]
    assert said == "".join(text + "\n\n" for text in shown)
    silent = texts(writer, prompts=prompts)
    assert silent == found
    assert capsys.readouterr().out == ""


def test_several_texts_are_numbered(writer, capsys):
    found = texts(writer, prompts=["a man"], num_return_sequences=2, stream=True)
    said, written, speed = capsys.readouterr().out.rpartition("written    ")
    assert written
    assert re.fullmatch(SPEED, speed)
    lines = [f"[{n}] {text}" for n, text in enumerate(found[0], 1)]
    escaped = ["\n".join(map(escape, line.split("\n"))) for line in lines]
    assert said == "\n".join(escaped) + "\n\n"


def test_a_terminal_that_is_not_utf8(writer, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    texts(writer, prompts=["the caf\u00e9 was"], stream=True)
    sys.stdout.flush()
    assert b"the caf\\xe9 was" in raw.getvalue()


@pytest.mark.parametrize("least", [0, 15])
def test_tokens_are_counted_up_to_the_end_of_the_text(writer, capsys, least):
    model, tokenizer = writer
    args = arguments(
        "the film was",
        do_sample=True,
        temperature=5.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=64,
        min_new_tokens=least,
    )
    seen = []

    def keep(ids, **kwargs):
        seen.append(ids)
        return tokenizer.__class__.batch_decode(tokenizer, ids, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "batch_decode", keep)
        generate.sample(model, tokenizer, args, 1, stream=True)
    start = len(tokenizer("the film was")["input_ids"])
    lengths = []
    for row in seen[0][:, start:].tolist():
        ends = [i for i, token in enumerate(row) if token == tokenizer.eos_token_id]
        lengths.append(ends[0] + 1 if ends else len(row))
    assert min(lengths) >= least
    assert (min(lengths) < 15) == (least == 0)  # else nothing was there to count
    assert f"written    {sum(lengths)} tokens, " in capsys.readouterr().out


@pytest.mark.parametrize("greedy", [True, False])
def test_scores_that_are_not_numbers_stop(greedy):
    tokenizer = tiny.bpe_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = tiny.model("gpt2", "causal-lm", len(tokenizer))
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = torch.nan
    with pytest.raises(NonFiniteError, match="scores for the next token are nan") as e:
        texts((model, tokenizer), do_sample=not greedy)
    assert e.value.exit_code == 6


def test_show_gives_every_text_of_every_prompt_and_keeps_them(capsys):
    kept = []
    run = SimpleNamespace(write_examples=lambda *given: kept.append(given))
    after = [["A", "B"], ["C\x1b", "D"]]
    generate.show([["a", "b"], ["c", "d"]], after, ["1", "2"], run)
    assert capsys.readouterr().out == (
        "\nbefore [1] a\nbefore [2] b\nafter [1]  A\nafter [2]  B\n"
        "\nbefore [1] c\nbefore [2] d\nafter [1]  C\\x1b\nafter [2]  D\n"
    )
    generate.show([], [["A"], ["B"]], ["1", "2"], run)
    assert capsys.readouterr().out == "\nwritten    A\n\nwritten    B\n"
    generate.show([], [], [], run)
    assert capsys.readouterr().out == ""
    first, second = ([row["before"] for row in rows] for _, rows in kept)
    assert (first, second) == ([["a", "b"], ["c", "d"]], [[], []])
    assert kept[0][1][1] == {"prompt": "2", "before": ["c", "d"], "after": after[1]}


class _Elsewhere:
    """A model on another device that writes nothing but its prompt."""

    device, config, base_model = torch.device("meta"), None, None
    generation_config = GenerationConfig()

    def eval(self):
        return self

    def generate(self, input_ids, attention_mask, **options):
        assert {input_ids.device, attention_mask.device} == {self.device}
        return torch.zeros(input_ids.shape, dtype=torch.int64)


def test_prompts_go_to_the_device_of_the_model(bpe):
    assert len(generate.sample(_Elsewhere(), bpe, arguments(), 1)) == len(PROMPTS)


GAIN = "5 % more are a gain"
ALL = "fp32 6.0, bf16 6.0, fp32 packed 6.0, bf16 packed 6.0"


def tried(faster):
    rates = ALL.replace(f"{faster} 6.0", f"{faster} 24.0", 1)
    return f"tokens/s, tried: {rates}; {GAIN}"


@pytest.mark.parametrize(
    ("given", "faster", "value", "reason"),
    [
        ({}, "bf16 packed", "bf16 packed", tried("bf16 packed")),
        ({}, "fp32", "fp32", tried("fp32")),
        (
            {"precision": "fp32"},
            *("fp32 packed", "fp32 packed"),
            f"tokens/s, tried: fp32 6.0, fp32 packed 24.0; {GAIN}",
        ),
        (
            {"bf16": True},
            *("bf16", "bf16"),
            f"tokens/s, tried: bf16 24.0, bf16 packed 6.0; {GAIN}",
        ),
        ({"fast_path": "off"}, "bf16", "fp32", "nothing is tried"),
        ({"fast_path": "off", "precision": "bf16"}, "", "bf16", "nothing is tried"),
    ],
)
def test_the_form_that_writes_faster(
    writer, tmp_path, monkeypatch, given, faster, value, reason
):
    """Tried once; the second time the figures are recalled."""
    monkeypatch.setenv("LLMFT_HOME", str(tmp_path))
    monkeypatch.setattr(detect, "detect", lambda: PLAIN)
    written = []

    def contest(candidates, write, budget):
        for candidate in candidates:
            write(candidate)
        written.append(candidates[1])
        names = {c: fast_writing._name(c) for c in candidates}
        return {c: 0.5 if name == faster else 2.0 for c, name in names.items()}, 1

    monkeypatch.setattr(fast_writing, "contest", contest)
    for _ in range(2):
        model, _ = copy.deepcopy(writer)
        args = TrainingArguments(output_dir=str(tmp_path / "x"), **given)
        found, choice = fast_writing.made_fast(model, args)
        assert choice == Choice("precision", value, reason)
        assert found.dtype == fast_writing.DTYPES[value.split()[0]]
        packed = [m for m in found.modules() if isinstance(m, PackedLinear)]
        assert bool(packed) == ("packed" in value)
        assert len(written) == max(reason.count(",") - 1, 0)


def test_a_model_is_as_it_was_where_copies_of_it_do_not_fit(
    writer, tmp_path, monkeypatch
):
    monkeypatch.setattr(detect, "allowed_bytes", lambda: 2**20)
    args = TrainingArguments(output_dir=str(tmp_path / "x"))
    _, choice = fast_writing.made_fast(copy.deepcopy(writer[0]), args)
    assert choice == Choice("precision", "fp32", "no memory to try others")


def test_a_form_that_is_hardly_faster_is_not_taken(writer, tmp_path, monkeypatch):
    """Twelve tokens are few: on a machine with AMX what was chosen so was slower."""
    monkeypatch.setenv("LLMFT_HOME", str(tmp_path))
    monkeypatch.setattr(detect, "detect", lambda: PLAIN)
    took = {"fp32": 1.0, "bf16": 0.97, "fp32 packed": 0.96, "bf16 packed": 0.96}

    def contest(candidates, write, budget):
        return {c: took[fast_writing._name(c)] for c in candidates}, 1

    monkeypatch.setattr(fast_writing, "contest", contest)
    args = TrainingArguments(output_dir=str(tmp_path / "x"))
    for _ in range(2):
        _, choice = fast_writing.made_fast(copy.deepcopy(writer[0]), args)
        assert choice.value == "fp32"
