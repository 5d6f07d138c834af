"""The part of the Data page in which people bring their own files: what they hold, what to make of them, the start."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from app import uploads
from app.data_view import running, uploaded
from app.html import note
from app.imports import FOUND, NO_LABELS, NO_TEXT, WHOLE, Choices, Imports
from app.shared import LARGEST_UPLOAD, PRIVATE, QUIET, Shared
from engine.data.builtin import BUILT_IN
from engine.errors import ConfigError, EngineError

TEXT_NAMES = ("text", "content", "body", "description", "abstract", "sentence", "document", "question", "title")
LABEL_NAMES = (
    "labels",
    "label",
    "tags",
    "tag",
    "categories",
    "category",
    "topics",
    "topic",
    "classes",
    "class",
    "target",
)
DELIMITERS = [
    ("found in the first rows", FOUND), ("; semicolon", ";"), ("| bar", "|"), (", comma", ","), ("tab", "\t"),
    ("space", " "), ("nothing: the whole field is one label", WHOLE),
]  # fmt: skip
ACCEPTED = (
    "One table (.csv, .tsv, .jsonl or .parquet), a train and a test table, or the files of a folder as papers on very "
    "many labels use them (trn.json and lbl.json; train_raw_texts.txt and train_labels.txt; trn_X.txt and trn_X_Y.txt; "
    "X.trn.txt and Y.trn.npz). Texts may be packed with gzip. "
)


class Bring:
    """Lays itself out inside the current Blocks. begun: a State that gets the id of the import, the HTML that shows its
    progress, and the button that cancels it.
    """

    def __init__(self, shared: Shared, imports: Imports, begun: Sequence[Any]):
        self.imports = imports
        self.datasets = shared.workspace.datasets
        self.begun = list(begun)
        own = len(shared.workspace.dataset_ids()) > len(BUILT_IN)
        with gr.Accordion("Bring your own texts and labels", open=not own, elem_id="bring") as self.box:
            gr.HTML(note(f"{ACCEPTED}Up to {LARGEST_UPLOAD.upper()} a file: larger ones with the command below"))
            self.files = gr.File(label="Your files", file_count="multiple", height=140, elem_id="upload")
            self.preview = gr.HTML(elem_id="upload-says")
            with gr.Group(visible=False) as self.table, gr.Row():
                self.text = gr.Dropdown(
                    [], multiselect=True, label="Columns with the text", info="several are joined in this order",
                    elem_id="text-columns",
                )  # fmt: skip
                self.labels = gr.Dropdown(
                    [], label="Column with the labels", info="all labels of the text in one field",
                    elem_id="labels-column",
                )  # fmt: skip
                self.delimiter = gr.Dropdown(
                    DELIMITERS, value=FOUND, label="Between two labels", info="choose, or type what stands there",
                    allow_custom_value=True,
                )  # fmt: skip
            self.columns_problem = gr.HTML(elem_id="columns-problem")
            self.name = gr.Textbox(
                label="Name of the dataset", info="letters, digits, hyphens; the folder is called so too", max_lines=1
            )
            self.name_problem = gr.HTML(elem_id="name-problem")
            with gr.Accordion("More settings", open=False):
                self.test = gr.Slider(
                    0, 50, value=10, step=1, label="Held out for testing, in %",
                    info="not learnt from: the model is measured on these texts; files with a test set need none",
                )  # fmt: skip
                self.seed = gr.Number(
                    value=0, precision=0, label="Seed", info="another number holds out other texts", elem_id="seed"
                )
                self.seed_problem = gr.HTML()
                self.strict = gr.Checkbox(
                    label="Stop at the first bad row", info="otherwise bad rows are left out, counted and listed"
                )
            self.command = gr.Textbox(
                self._show_command(None, None, "", None, None, FOUND, 10, 0, False), lines=2, interactive=False,
                label="The same on the command line", buttons=["copy"], elem_id="command",
            )  # fmt: skip
            self.start = gr.Button("Import", variant="primary", elem_id="import")
        self.found = gr.State()
        self._wire()

    def _wire(self) -> None:
        fields = [self.files, self.found, self.name, self.text, self.labels, self.delimiter, self.test, self.seed]
        fields.append(self.strict)
        looked = [self.preview, self.found, self.table, self.text, self.labels, self.test, self.name]
        looked += [self.columns_problem, self.name_problem]
        self.files.change(self._look, [self.files, self.name], looked, show_progress_on=self.preview, **PRIVATE)
        self.name.change(self._check_name, [self.name, self.files], self.name_problem, **QUIET)
        gr.on([self.text.input, self.labels.input], lambda: "", None, self.columns_problem, **QUIET)
        problems = [self.preview, self.columns_problem, self.name_problem, self.seed_problem]
        self.start.click(self._begin, fields, [*problems, *self.begun], **QUIET)
        gr.on(
            [field.change for field in fields if field is not self.files],
            self._show_command,
            fields,
            self.command,
            **QUIET,
        )

    @property
    def cleared(self) -> dict[Any, Any]:
        """Updates that make the form empty and fold it, after an import."""
        return {self.files: None, self.name: "", self.box: gr.update(open=False)}

    def _look(self, files: list[str] | None, name: str) -> tuple:
        """Updates of what depends on the files."""
        # The fields keep their choices: what a browser sends while it empties them is still checked against these.
        nothing = (None, gr.update(visible=False), gr.skip(), gr.skip(), gr.update(interactive=True), gr.skip(), "", "")
        if not files:
            return "", *nothing
        try:
            found = uploads.look(files)
        except EngineError as error:
            return note(str(error), problem=True), *nothing
        columns = found["columns"]
        text, labels = _guesses(columns, TEXT_NAMES, ["title"]), _guesses(columns, LABEL_NAMES)
        missing = [words for words, column in ((NO_TEXT, text), (NO_LABELS, labels)) if columns and not column]
        return (
            uploaded(found),
            found,
            gr.update(visible=bool(columns)),
            gr.update(choices=columns, value=text),
            gr.update(choices=columns, value=next(iter(labels), None)),
            gr.update(interactive="test" not in found["splits"]),
            name or self._suggestion(files),
            "".join(note(words, problem=True) for words in missing),
            gr.skip(),
        )

    def _suggestion(self, files: list[str]) -> str:
        name = Path(files[0]).name.split(".")[0] if len(files) == 1 else ""
        try:
            return self.imports.check_name(name)
        except EngineError:
            return ""

    def _check_name(self, name: str, files: list[str] | None) -> str:
        if not name.strip() and not files:
            return ""
        return _problem(self.imports.check_name, name)

    def _choices(self, found, text, labels, delimiter, test, seed, strict) -> Choices:
        held_out = None if found and "test" in found["splits"] else test / 100
        is_table = bool(found and found["columns"])
        return Choices(
            tuple(text or ()) if is_table else (), labels if is_table else None, delimiter or FOUND, held_out,
            int(seed or 0), strict,
        )  # fmt: skip

    def _begin(self, files, found, name, text, labels, delimiter, test, seed, strict) -> tuple:
        """Starts the import, or says at each field what is wrong with it."""
        files_says, columns_says, seed_says = gr.skip(), "", ""
        if not files:
            files_says = note("choose a file first", problem=True)
        elif not found:
            files_says = note("these files cannot be imported: choose others", problem=True)
        elif found["columns"]:
            columns_says = _problem(_check_columns, text, labels)
        if seed is None or not 0 <= seed < 2**63:
            seed_says = note("the seed is a whole number from 0", problem=True)
        name_says = _problem(self.imports.check_name, name)
        not_begun = [gr.skip()] * len(self.begun)
        if isinstance(files_says, str) or columns_says or seed_says or name_says:
            return files_says, columns_says, name_says, seed_says, *not_begun
        choices = self._choices(found, text, labels, delimiter, test, seed, strict)
        try:
            job = self.imports.start(files, name, choices)
        except EngineError as error:
            return gr.skip(), "", note(str(error), problem=True), "", *not_begun
        return gr.skip(), "", "", "", job.id, gr.update(value=running(job), visible=True), gr.update(visible=True)

    def _show_command(self, files, found, name, text, labels, delimiter, test, seed, strict) -> str:
        choices = self._choices(found, text, labels, delimiter, test, seed, strict)
        single = found and found["columns"] and len(found["splits"]) == 1
        source = Path(files[0]).name if files and single else "FOLDER" if files else "FILE_OR_FOLDER"
        name = name.strip() or "NAME"
        return shlex.join(["engine", *choices.arguments(source, self.datasets / name, name)])


def _check_columns(text: list[str], labels: str | None) -> None:
    if not text:
        raise ConfigError(NO_TEXT)
    if not labels:
        raise ConfigError(NO_LABELS)
    if labels in text:
        raise ConfigError(f"{labels} holds the labels: it cannot be the text as well")
    if broken := next((column for column in text if "," in column), None):
        raise ConfigError(f"rename the column {broken} in the file: names of text columns hold no comma")


def _problem(check: Any, *values: Any) -> str:
    """What `check` finds wrong, as HTML; nothing if it finds nothing."""
    try:
        check(*values)
    except EngineError as error:
        return note(str(error), problem=True)
    return ""


def _guesses(columns: list[str], usual: Sequence[str], before: Sequence[str] = ()) -> list[str]:
    """The column that is called as such columns usually are, behind those of `before`; none if there is none."""
    by_name = {column.lower(): column for column in reversed(columns)}
    found = next((by_name[name] for name in usual if name in by_name), None)
    return [*(by_name[name] for name in before if by_name.get(name, found) != found), found] if found else []
