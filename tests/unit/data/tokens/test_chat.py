"""What is learnt is the completion, by bytes that are counted another way."""

import json
import pickle
from itertools import accumulate, pairwise
from threading import Thread

import pytest
import tiny
import torch
from datasets import Dataset
from tokenizers import processors
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from llmft.config.fields import GenerationDataArguments, GenerationModelArguments
from llmft.config.parse import Arguments
from llmft.data.read.store import Source
from llmft.data.tokens import chat
from llmft.data.tokens import examples as module
from llmft.data.tokens.collate import IGNORED, SeededDataCollatorForLanguageModeling
from llmft.data.tokens.examples import causal_examples
from llmft.errors import ConfigError, DataFormatError, LengthError, escape
from llmft.model.probes import drop_seq_lengths_if_unsupported, plain_head
from llmft.sources import catalog
from llmft.tasks import generate
from llmft.train.losses import labelled_cross_entropy
from llmft.train.narrow import head_inputs

EOS = "<|endoftext|>"
# The same in float32, summed in another order.
SAME = {"rtol": 2e-4, "atol": 1e-6}
MARKED = tiny.CHAT_TEMPLATE.replace(
    "{{ m['content'] }}{{ eos_token }}\n",  # a line break after a block is dropped
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}"
    "{{ '\n' }}",
)
TALKS = [
    [("user", "the old man"), ("assistant", "a film")],
    [
        ("system", "s"),
        ("user", " é 漢 "),
        ("assistant", "  👩\u200d💻  x "),
        ("user", "u"),
    ],
    [("user", ""), ("assistant", "\n\nwith lines\n"), ("user", "?"), ("assistant", "")],
    [("user", EOS), ("assistant", f"one {EOS} two"), ("assistant", "again ")],
]
PAIRS = [
    *[("the old", " man"), ("the old ", "man"), ("the o", "ld man"), ("", "a film ")],
    *[("é", "é 漢"), ("a\n", "\n b"), ("a", f"b{EOS}"), ("a ", "  ")],
]


@pytest.fixture(params=[False, True], ids=["whole", "trimmed"])
def tokenizer(request):
    """With offsets of whole tokens, or without the blanks that they begin with."""
    found = tiny.bpe_tokenizer()
    found.pad_token, found.chat_template = EOS, tiny.CHAT_TEMPLATE
    if request.param:
        found.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return found


def messages(talk):
    return [{"role": role, "content": content} for role, content in talk]


def source(rows, files=("f.jsonl",)):
    columns = {"file": [0] * len(rows), "line": [*range(1, len(rows) + 1)]}
    if isinstance(rows[0], list):
        columns["text"] = [json.dumps(messages(talk)) for talk in rows]
        return Source(Dataset.from_dict(columns), "f", files=files, format="messages")
    columns["text"], columns["text_pair"] = map(list, zip(*rows, strict=True))
    found = Dataset.from_dict(columns)
    return Source(found, "f", files=files, format="prompt-completion")


def examples(rows, tokenizer, **given):
    given = {"max_seq_length": 200, "block_policy": "row"} | given
    args = GenerationDataArguments(**given)
    return causal_examples(source(rows), tokenizer, args, "train")


def pieces(talk):
    """Return the text of a conversation in parts, each with whether it is learnt."""
    found = [] if talk[0][0] == "system" else [(f"[system]help{EOS}\n", False)]
    for role, content in talk:
        found += [(f"[{role}]", False), (content + EOS, role == "assistant")]
        found.append(("\n", False))
    return found


def by_bytes(parts, tokenizer):
    """Ids of the parts together, and ``token_types``, from the bytes of the tokens."""
    ids = tokenizer("".join(text for text, _ in parts), add_special_tokens=False)
    ids = ids["input_ids"]
    ends = [*accumulate(len(token) for token in tokenizer.convert_ids_to_tokens(ids))]
    types = [0] * len(ids)
    at = 0
    for text, learnt in parts:
        first, at = at, at + len(text.encode())
        for i, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if learnt and begin < at and end > first:
                types[i] = 2 if begin < first else 1
    assert at == ends[-1]
    return ids, types


def labelled(ids, types):
    return [i if t else IGNORED for i, t in zip(ids, types, strict=True)]


@pytest.mark.parametrize("template", [tiny.CHAT_TEMPLATE, MARKED])
def test_the_turns_of_the_assistant_are_learnt(tokenizer, template, capsys):
    tokenizer.chat_template = template
    made = examples(TALKS, tokenizer)
    expected = [by_bytes(pieces(talk), tokenizer) for talk in TALKS]
    assert made["input_ids"][:] == [ids for ids, _ in expected]
    assert made["labels"][:] == [labelled(*row) for row in expected]
    assert made["row"][:] == [0, 1, 2, 3]
    assert made["length"][:] == [len(ids) for ids, _ in expected]
    total = sum(len(ids) for ids, _ in expected)
    count = sum(t > 0 for _, types in expected for t in types)
    said = f"  train      {total} tokens in 4 examples of up to 200, {count} of them to"
    assert capsys.readouterr().out == said + " learn\n"


def test_marks_are_those_of_transformers(tokenizer):
    """Not where offsets leave out blanks: there it loses turns."""
    tokenizer.chat_template = MARKED
    talks = [TALKS[0], TALKS[2], TALKS[3]]
    made = examples(talks, tokenizer)
    for row, talk in zip(made, talks, strict=True):
        theirs = tokenizer.apply_chat_template(
            messages(talk), return_assistant_tokens_mask=True
        )
        assert row["input_ids"] == theirs["input_ids"]
        if tokenizer.backend_tokenizer.post_processor is None:
            mask = [int(label != IGNORED) for label in row["labels"]]
            assert mask == theirs["assistant_masks"]


def test_the_completion_and_its_end_are_learnt(tokenizer, capsys):
    made = examples(PAIRS, tokenizer)
    expected = []
    for prompt, completion in PAIRS:
        end = "" if completion.endswith(EOS) else EOS
        parts = [(prompt, False), (completion + end, True)]
        expected.append(by_bytes(parts, tokenizer))
    assert made["input_ids"][:] == [ids for ids, _ in expected]
    assert made["labels"][:] == [labelled(*row) for row in expected]
    within = sum(2 in types for _, types in expected)
    assert within >= 2
    assert f"; {within} completions begin within a token\n" in capsys.readouterr().out


def test_special_tokens_around_a_text_are_no_prompt(tokenizer):
    template = processors.TemplateProcessing(
        single=f"{EOS} $A {EOS}", special_tokens=[(EOS, 0)]
    )
    tokenizer.backend_tokenizer.post_processor = template
    (row,) = examples([("a", " film")], tokenizer)
    ids = tokenizer("a film")["input_ids"]
    assert row["input_ids"] == ids
    assert row["labels"] == [IGNORED, IGNORED, *ids[2:]]


@pytest.mark.parametrize("rows", [TALKS, PAIRS])
def test_all_may_be_learnt(tokenizer, rows, capsys):
    made = examples(rows, tokenizer, completion_only_loss=False)
    assert made["labels"][:] == made["input_ids"][:]
    assert made["input_ids"][:] == examples(rows, tokenizer)["input_ids"][:]


def test_what_is_longer_is_cut_and_counted(bpe, capsys):
    lengths = ((2, 3), (30, 3), (2, 40), (16, 9))
    rows = [("the " * n, " good" * m) for n, m in lengths]
    whole = examples(rows, bpe)
    capsys.readouterr()
    made = examples(rows, bpe, max_seq_length=16)
    assert made["input_ids"][:] == [whole["input_ids"][i][:16] for i in (0, 2)]
    assert made["labels"][:] == [whole["labels"][i][:16] for i in (0, 2)]
    assert made["row"][:] == [0, 1]
    assert made["documents"][:] == [[0, 0], [2, 2]]
    left = len(whole["input_ids"][2]) - 16
    said = capsys.readouterr().out
    assert f"; 1 row cut to 16 tokens, {left} tokens left out" in said
    assert "; 2 rows without a completion in their first 16 tokens left out" in said


def test_nothing_left_is_an_error(bpe):
    with pytest.raises(LengthError) as caught:
        examples([("the " * 30, "x")] * 2, bpe, max_seq_length=16)
    assert str(caught.value) == (
        "LengthError: none of 2 train rows has a completion within its first 16 tokens;"
        " raise --max_seq_length"
    )


def test_packed(tokenizer, capsys):
    """The labels go along, and a block without one is left out."""
    rows = [*PAIRS, ("the " * 60, "x"), *PAIRS]
    whole = examples(rows, tokenizer)
    flat = {n: [x for row in whole[n] for x in row] for n in ("input_ids", "labels")}
    capsys.readouterr()
    made = examples(rows, tokenizer, block_policy="pack", max_seq_length=16)
    starts = range(0, len(flat["labels"]) // 16 * 16, 16)
    learnt = [s for s in starts if {*flat["labels"][s : s + 16]} != {IGNORED}]
    assert 0 < len(learnt) < len(starts)
    for name, values in flat.items():
        assert made[name][:] == [values[s : s + 16] for s in learnt]
    owners = [i for i, ids in enumerate(whole["input_ids"]) for _ in ids]
    assert made["documents"][:] == [[owners[s], owners[s + 15]] for s in learnt]
    ends = {*accumulate(map(len, whole["input_ids"]))}
    for start, found in zip(learnt, made["seq_lengths"], strict=True):
        cuts = sorted({start, start + 16, *(ends & {*range(start, start + 16)})})
        assert found == [b - a for a, b in pairwise(cuts)]
    said = capsys.readouterr().out
    out = len(starts) - len(learnt)
    assert f"; {out} blocks without a completion left out" in said
    left = len(flat["labels"]) % 16
    assert f"; {left} tokens of the last partial block left out" in said
    batch = SeededDataCollatorForLanguageModeling(tokenizer, mlm=False)(list(made))
    assert (batch["labels"][batch["position_ids"] == 0] == IGNORED).all()


@pytest.mark.parametrize("policy", ["row", "pack"])
def test_a_few_examples_at_a_time_make_the_same(policy, tokenizer, monkeypatch, capsys):
    rows = [*PAIRS, ("the " * 60, "x"), *PAIRS]
    given = {"block_policy": policy, "max_seq_length": 16}
    whole, said = examples(rows, tokenizer, **given).to_dict(), capsys.readouterr()
    for size in (1, 7, 40, 100):
        monkeypatch.setattr(module, "_PIECE", size)
        assert examples(rows, tokenizer, **given).to_dict() == whole
        assert capsys.readouterr() == said


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("policy", ["row", "pack"])
def test_loss_and_gradients_are_those_of_the_completions(policy):
    """Against each conversation alone, with all its logits, and without our labels."""
    tokenizer = tiny.bpe_tokenizer()
    tokenizer.pad_token, tokenizer.chat_template = EOS, tiny.CHAT_TEMPLATE
    model = tiny.model("llama", "causal-lm", len(tokenizer))
    size = 200
    if policy == "pack":  # one block that holds all of them
        size = sum(len(by_bytes(pieces(talk), tokenizer)[0]) for talk in TALKS)
        model.config.max_position_embeddings = 2 * size
    data = {"t": examples(TALKS, tokenizer, block_policy=policy, max_seq_length=size)}
    data = drop_seq_lengths_if_unsupported(model, data)["t"]
    assert ("seq_lengths" in data.column_names) == (policy == "pack")
    batch = SeededDataCollatorForLanguageModeling(tokenizer, mlm=False)(list(data))
    labels = batch.pop("labels")
    head = plain_head(model, batch)
    with head_inputs(head) as states:
        model(**batch, use_cache=False)
    found = labelled_cross_entropy(states[0][:, :-1], labels[:, 1:], None, 0.0, head)
    ours = gradients(model, found)

    total, count = 0.0, 0
    for talk in TALKS:
        ids, types = (torch.tensor(x) for x in by_bytes(pieces(talk), tokenizer))
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        nll = functional.cross_entropy(logits, ids[1:], reduction="none")
        total, count = total + nll[types[1:] > 0].sum(), count + int((types > 0).sum())
    torch.testing.assert_close(found, total / count, **SAME)
    plain = gradients(model, total / count)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, plain[name], **SAME, msg=name)


def test_the_cache_knows_template_format_and_loss(bpe, monkeypatch):
    folder = catalog.cache_home() / "tokenized"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer)
    tokenizer.eos_token, tokenizer.chat_template = EOS, tiny.CHAT_TEMPLATE
    first = examples(TALKS, tokenizer)[:]
    assert len([*folder.iterdir()]) == 1
    with monkeypatch.context() as patch:
        patch.setattr(chat.Layout, "encode", None)  # not called again
        assert examples(TALKS, tokenizer)[:] == first
        assert examples(TALKS, tokenizer, max_seq_length=50)["row"][:] == [0, 1, 2, 3]
    assert len([*folder.iterdir()]) == 1
    assert examples(TALKS, tokenizer, assistant_only_loss=False)[:] != first
    tokenizer.chat_template = tiny.CHAT_TEMPLATE.replace("help", "be kind")
    assert examples(TALKS, tokenizer)[:] != first
    assert len([*folder.iterdir()]) == 3


def test_workers_make_the_same(bpe):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer)
    tokenizer.eos_token, tokenizer.chat_template = EOS, tiny.CHAT_TEMPLATE
    one = examples(TALKS, tokenizer)[:]
    workers = {"preprocessing_num_workers": 1, "overwrite_cache": True}
    assert examples(TALKS, tokenizer, **workers)[:] == one


@pytest.mark.parametrize(
    ("template", "lost"),
    [
        (tiny.CHAT_TEMPLATE, ""),
        (
            tiny.CHAT_TEMPLATE.replace("m['content']", "m['content'][1:]"),
            "1 of system, 1 of user, 1",
        ),
        (
            "{% for m in messages if m.role != 'system' %}[{{ m.role }}]"
            "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
            "1 of system; give another by --chat_template_path",
        ),
    ],
)
def test_turns_that_are_not_written_as_they_were_said(bpe, capsys, template, lost):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer)
    tokenizer.eos_token, tokenizer.chat_template = EOS, template
    talk = [("system", "be brief"), ("user", "hello"), ("assistant", "good day")]
    examples([talk], tokenizer)
    said = "leaves out, or writes otherwise, turns: "
    warned = [line for line in capsys.readouterr().err.splitlines() if said in line]
    assert len(warned) == bool(lost)
    assert all(f"{said}{lost}" in line for line in warned)


def test_an_error_can_come_from_a_worker():
    error = DataFormatError("found", hint="do", path="f.jsonl", line=3)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('alternate!') }}"
            "{% endif %}" + tiny.CHAT_TEMPLATE,
            "f.jsonl:2: the chat template refuses this conversation: alternate!; mend"
            " it, or give another template with --chat_template_path",
        ),
        (
            "{{ messages|length }}" + tiny.CHAT_TEMPLATE,
            "f.jsonl:1: the chat template writes what comes before the end of message 2"
            " otherwise than in the whole conversation, so that the turn of the"
            " assistant cannot be found; 4 rows are bad (f.jsonl:2, f.jsonl:3,"
            " f.jsonl:4); give a template with {% generation %} around what the"
            " assistant says by --chat_template_path, or --assistant_only_loss false",
        ),
        (
            tiny.CHAT_TEMPLATE + "{% generation %}{% endgeneration %}",
            "f.jsonl:1: the chat template leaves no token of the assistant to learn;"
            " 4 rows are bad (f.jsonl:2, f.jsonl:3, f.jsonl:4); give a template with",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "f.jsonl:1: the chat template leaves no token of the assistant to learn;",
        ),
    ],
)
def test_a_row_that_does_not_fit_the_template(bpe, template, said):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer)
    tokenizer.eos_token, tokenizer.chat_template = EOS, template
    with pytest.raises(DataFormatError) as caught:
        examples(TALKS, tokenizer)
    assert str(caught.value).startswith(f"DataFormatError {said}")
    if "writes" in said:
        examples(TALKS, tokenizer, assistant_only_loss=False)


def test_without_a_template(bpe):
    with pytest.raises(ConfigError) as caught:
        examples(TALKS, bpe)
    assert str(caught.value) == (
        f"ConfigError: no chat template to write conversations with: {bpe.name_or_path}"
        " has none that is the default; choose an instruct model, or give a file with"
        " one by --chat_template_path"
    )


def test_a_template_that_is_not_jinja(bpe):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer)
    tokenizer.chat_template = "{% for m in %}"
    with pytest.raises(ConfigError, match="the chat template is not Jinja: line 1: "):
        examples(TALKS, tokenizer)


def settled(found, tokenizer, data=None, **model):
    args = Arguments(
        GenerationModelArguments(**model),
        GenerationDataArguments(**(data or {})),
        None,
        {},
    )
    return args, generate.set_defaults_from_format(args, found, tokenizer)


def test_what_follows_from_the_format(bpe):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer)
    tokenizer.eos_token, tokenizer.chat_template = EOS, tiny.CHAT_TEMPLATE
    args, choices = settled("text", tokenizer)
    assert (args.data.block_policy, args.model.apply_chat_template) == ("pack", None)
    assert choices == []
    args, choices = settled("prompt-completion", tokenizer, prompt=["x"])
    assert (args.data.block_policy, args.model.apply_chat_template) == ("row", None)
    (loss,) = choices
    assert (loss.value, loss.reason) == (
        *("on the completion only", "completion_only_loss is true"),
    )
    data = {"assistant_only_loss": False, "block_policy": "pack"}
    args, choices = settled("messages", tokenizer, data, prompt=["x"])
    assert (args.data.block_policy, args.model.apply_chat_template) == ("pack", True)
    assert args.origins == {"apply_chat_template": "follows: the data are messages"}
    shown = f"[system]help{EOS}\n[user]x{EOS}\n[assistant]"
    assert [c.value for c in choices] == ["on all tokens", escape(repr(shown))]
    args, choices = settled("messages", tokenizer, apply_chat_template=False)
    assert not args.model.apply_chat_template
    assert [c.value for c in choices] == ["on turns of the assistant only"]


@pytest.mark.parametrize(
    ("found", "flag", "said"),
    [
        (
            "text",
            "completion_only_loss",
            "given, and the data are plain text; expected",
        ),
        ("text", "assistant_only_loss", "given, and the data are plain text; expected"),
        ("prompt-completion", "assistant_only_loss", "use --completion_only_loss"),
    ],
)
def test_a_loss_on_what_is_not_there(bpe, found, flag, said):
    with pytest.raises(
        ConfigError, match=f"{flag} is given, .*{said}|{flag} is {said}"
    ):
        settled(found, bpe, {flag: True})


def test_a_file_with_a_template(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("{# é #}", "utf-8")
    assert chat.read_template(str(path)) == "{# é #}"
    path.write_text(" \n")
    with pytest.raises(ConfigError, match="is an empty file"):
        chat.read_template(str(path))
    with pytest.raises(ConfigError, match="none: chat_template_path cannot be read"):
        chat.read_template(str(tmp_path / "none"))


def test_batches_that_are_rendered_at_once_do_not_mix_their_turns(bpe):
    """transformers keeps the places of the turns with the template."""
    bpe.chat_template = MARKED
    words = [str(i) * (i % 40 + 1) for i in range(1500)]
    talks = [[("user", "a"), ("assistant", w)] * 4 for w in words]
    layout = chat.Layout(bpe, "messages", True)
    found = []

    def read(part):
        found.append([layout.render(messages(talk), marks=True) for talk in part])

    threads = [Thread(target=read, args=(talks,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for (text, spans), word in zip(found[0], words, strict=True):
        assert [text[start:end] for start, end in spans] == [f"{word}{EOS}"] * 4
    assert found[0] == found[1] == found[2]
