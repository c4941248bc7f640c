"""Conversations and prompts are read as they are, and every bad one has its line."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset

from llmft.data.read.columns import Columns
from llmft.data.read.files import Reading
from llmft.data.read.rows import hub_rows, streamed_files
from llmft.data.read.store import read_file, stored
from llmft.errors import ConfigError, DataError

CHAT = Columns(chat=True)
ODD = "  NA\r\n\ttrue \u2028 👩\u200d💻 <|endoftext|> \\n {% x %} "
TALK = [
    {"role": "system", "content": ""},
    {"role": "user", "content": ODD},
    {"role": "assistant", "content": f"{ODD}!"},
]
PAIR = {"prompt": ODD, "completion": f" {ODD}"}


def write(path, rows):
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [json.dumps(row) for row in rows]
        text = "[" + ",\n".join(lines) + "]" if path.suffix == ".json" else ""
        path.write_text(text or "\n".join(lines), "utf-8")
    return path


def messages_of(source):
    return [json.loads(text) for text in source.dataset["text"]]


@pytest.mark.parametrize("name", ["a.jsonl", "b.json", "c.parquet"])
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations_keep_every_character(tmp_path, name, column):
    rows = [{column: TALK, "id": 7}, {column: TALK[1:], "id": 8}]
    path = write(tmp_path / name, rows)
    source = read_file(path, CHAT)
    assert source.format == "messages"
    assert messages_of(source) == [TALK, TALK[1:]]
    named = [] if column == "messages" else ["messages = 'conversations'"]
    assert source.notes == ["format = messages", *named, "columns not used: 'id'"]
    assert read_file(path, CHAT).format == "messages"  # out of the cache


@pytest.mark.parametrize("name", ["a.jsonl", "b.json", "c.parquet", "d.csv"])
def test_prompts_keep_every_character(tmp_path, name):
    source = read_file(write(tmp_path / name, [PAIR, PAIR]), CHAT)
    assert source.format == "prompt-completion"
    assert source.dataset["text"][:] == [ODD] * 2
    assert source.dataset["text_pair"][:] == [f" {ODD}"] * 2
    assert source.notes[-1] == "format = prompt-completion"


def test_from_and_value_are_converted_and_said(tmp_path):
    old = [("system", "s"), ("human", "q"), ("gpt", "a")]
    talk = [{"from": role, "value": text} for role, text in old]
    source = read_file(write(tmp_path / "a.jsonl", [{"conversations": talk}]), CHAT)
    roles = ("system", "user", "assistant")
    assert messages_of(source) == [
        [
            {"role": role, "content": text}
            for role, (_, text) in zip(roles, old, strict=True)
        ]
    ]
    assert source.notes[:2] == [
        "format = messages",
        "from and value taken as role and content, human as user, gpt as assistant, in"
        " 1 row",
    ]


def test_what_else_a_message_has_is_said(tmp_path):
    talk = [{**TALK[1], "name": "Bo", "weight": None}, TALK[2]]
    source = read_file(write(tmp_path / "a.jsonl", [{"messages": talk}]), CHAT)
    assert messages_of(source) == [TALK[1:]]
    assert source.notes[1] == "keys of messages not used: 'name'"


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"text": "t", "prompt": "p"}, {}, "text"),
        ({"messages": "hello"}, {}, "text"),
        ({"text": "t", "messages": TALK}, {}, "messages"),
        ({"prompt": "p", "messages": TALK}, {}, "messages"),
        ({"prompt": "p", "completion": "c", "messages": TALK}, {}, "messages"),
        ({"text": "t", **PAIR}, {}, "prompt-completion"),
        ({"text": "t", **PAIR}, {"text": "text"}, "text"),
        ({"text": "t", "talk": TALK}, {"messages": "talk"}, "messages"),
        ({"q": "p", "completion": "c"}, {"prompt": "q"}, "prompt-completion"),
        ({"prompt": "p", "a": "c"}, {"completion": "a"}, "prompt-completion"),
    ],
)
def test_the_format_is_known_by_its_columns(tmp_path, row, columns, expected):
    path = write(tmp_path / "a.jsonl", [row])
    source = read_file(path, Columns(chat=True, **columns))
    assert source.format == expected
    assert (f"format = {expected}" in source.notes) == (expected != "text")


def test_other_tasks_read_no_conversations(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"messages": TALK}])
    with pytest.raises(DataError, match="name it with --text_column_name"):
        read_file(path, Columns())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"messages": "talk"}, "no column 'talk'; it has 'prompt', 'messages'; name it"
         " with --messages_column_name"),
        ({"prompt": "prompt"}, "no column 'completion'; it has 'prompt', 'messages';"
         " name it with --completion_column_name"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_there(tmp_path, columns, message):
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "messages": TALK}])
    with pytest.raises(DataError) as caught:
        read_file(path, Columns(chat=True, **columns))
    assert str(caught.value) == f"SchemaError {path}: {message}"


SAYS = {"role": "assistant", "content": "a"}
ASKS = {"role": "user", "content": "q"}
SCHEMA, FORMAT = "SchemaError", "DataFormatError"
M1, C1 = "message 1 of 'messages'", "the content of message 1 of 'messages'"
ROLES = "expected one of system, developer, user, assistant, tool"
BAD = [
    ("hi", SCHEMA, "'messages' is 'hi' (str); expected a list of {"),
    ([], FORMAT, "'messages' is empty; expected a list of {"),
    (None, SCHEMA, "'messages' is None (NoneType); expected a list of {"),
    (["hi"], SCHEMA, f"{M1} is 'hi' (str); expected {{"),
    ([{"role": "user"}], SCHEMA, f"{M1} has no 'content'; it has 'role'"),
    ([{"content": "x"}], SCHEMA, f"{M1} has no 'role'; it has 'content'"),
    ([{"from": "gpt"}], SCHEMA, f"{M1} has no 'value'; it has 'from'"),
    ([{}], SCHEMA, f"{M1} has no 'role'; it is empty"),
    ([SAYS, {}], SCHEMA, "message 2 of 'messages' has no 'role'"),
    ([{**SAYS, "role": "robot"}], SCHEMA, f"{M1} has the role 'robot'; {ROLES}"),
    ([{**SAYS, "role": ["user"]}], SCHEMA, f"{M1} has the role ['user']; {ROLES}"),
    ([{**SAYS, "content": 3}], SCHEMA, f"{C1} is 3 (int); expected text"),
    ([ASKS], FORMAT, "'messages' has no turn of the assistant with text; expected one"),
    ([{**SAYS, "content": " \n"}], FORMAT, "no turn of the assistant with text"),
    ([{**SAYS, "content": "a\0"}], FORMAT, f"{C1} holds a NUL byte, as character 2"),
    ([{**SAYS, "content": "\ud83d"}], FORMAT, f"{C1} holds half of a character"),
]


@pytest.mark.parametrize(("bad", "kind", "said"), BAD)
def test_a_bad_conversation_has_its_line(tmp_path, bad, kind, said):
    rows = [{"messages": TALK}, {"messages": bad}, {"messages": TALK}]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError) as caught:
        read_file(path, CHAT)
    message = str(caught.value)
    assert message.startswith(f"{kind} {path}:2: ")
    assert said in message
    assert message.endswith("--max_bad_rows 1 leaves bad rows out")
    left = read_file(path, CHAT, Reading(max_bad_rows=1))
    assert messages_of(left) == [TALK, TALK]
    assert f"1 bad row left out ({path}:2)" in left.notes


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"prompt": "p"}, "SchemaError {}:2: no 'completion' in this row"),
        ({"prompt": "p", "completion": " "}, "DataFormatError {}:2: 'completion' is "
         "empty; expected a text to learn"),
        ({"prompt": TALK, "completion": "c"}, "SchemaError {}:2: 'prompt' is "),
        ({"prompt": None, "completion": "c"}, "SchemaError {}:2: 'prompt' is None"),
        ({"prompt": "p", "completion": "\ud83d"}, "DataFormatError {}:2: 'completion' "
         "holds half of a character"),
    ],
)  # fmt: skip
def test_a_bad_completion_has_its_line(tmp_path, bad, said):
    path = write(tmp_path / "a.jsonl", [PAIR, bad, {"prompt": "", "completion": "c"}])
    with pytest.raises(DataError) as caught:
        read_file(path, CHAT)
    assert str(caught.value).startswith(said.format(path))
    left = read_file(path, CHAT, Reading(max_bad_rows=1))
    assert left.dataset["text_pair"][:] == [PAIR["completion"], "c"]


def of_hub(data, columns=CHAT):
    return stored(hub_rows("hub", columns, data, data._fingerprint))


def test_of_the_hub():
    talks = Dataset.from_list([{"conversations": TALK, "n": 1}] * 2)
    source = of_hub(talks)
    assert (source.format, messages_of(source)) == ("messages", [TALK] * 2)
    assert source.notes == [
        *("format = messages", "messages = 'conversations'", "columns not used: 'n'")
    ]
    pairs = Dataset.from_list([{"q": "p", "a": "c"}])
    source = of_hub(pairs, Columns(chat=True, prompt="q", completion="a"))
    assert source.format == "prompt-completion"
    assert source.dataset["text_pair"][:] == ["c"]
    bad = Dataset.from_list([{"messages": [{"role": "user", "content": "q"}]}])
    with pytest.raises(
        DataError, match="hub:1: 'messages' has no turn of the assistant"
    ):
        of_hub(bad)


def test_a_stream_refuses_them(tmp_path):
    path = write(tmp_path / "a.jsonl", [PAIR])
    with pytest.raises(
        ConfigError, match="the data are prompt-completion: leave --str"
    ):
        list(streamed_files(str(path), CHAT, Reading()))


def test_a_system_prompt_beside_an_instruction_is_a_turn(tmp_path):
    row = {"instruction": "Go.", "output": "Yes.", "system": "Be short.", "history": []}
    source = read_file(write(tmp_path / "a.jsonl", [row]), CHAT)
    (found,) = [json.loads(text) for text in source.dataset["text"]]
    assert [m["role"] for m in found] == ["system", "user", "assistant"]
    assert not any("not used" in note for note in source.notes)


INSTRUCTIONS = [
    {"instruction": "Say it in German.", "input": "a dog", "output": "ein Hund"},
    {"instruction": "Name a fish.", "input": "", "output": "Cod"},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_instructions_become_conversations(tmp_path, name):
    source = read_file(write(tmp_path / name, INSTRUCTIONS), CHAT)
    assert source.format == "messages"
    found = [json.loads(text) for text in source.dataset["text"]]
    assert [[m["role"] for m in turns] for turns in found] == [
        ["user", "assistant"]
    ] * 2
    assert [[m["content"] for m in turns] for turns in found] == [
        ["Say it in German.\n\na dog", "ein Hund"],
        ["Name a fish.", "Cod"],
    ]
    said = "instruction taken as user's turn, output as the assistant's; input below it"
    assert f"{said} in 1 row" in source.notes
    assert not any("not used" in note for note in source.notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output": " "}, "has no turn of the assistant with text"),
        ({"output": 3}, r"message 2 of 'instruction and output' is 3 \(int\)"),
        ({"history": [["a", "b"]]}, "'history' holds turns before the instruction"),
        ({"input": ["a"]}, r"'input' is \['a'\] \(list\)"),
    ],
)
def test_an_instruction_without_an_answer_is_a_bad_row(tmp_path, changes, said):
    rows = [*INSTRUCTIONS, INSTRUCTIONS[0] | changes]
    with pytest.raises(DataError, match=said) as caught:
        read_file(write(tmp_path / "a.jsonl", rows), CHAT)
    assert caught.value.line == 3
