"""The page of `posters app`: components of gradio, and which action each event starts (actions.py)."""

from __future__ import annotations

import logging
from dataclasses import fields
from functools import partial
from importlib.resources import files as package_files
from typing import Any

import gradio as gr

from shards.errors import UserError, one_line
from shards.visuals.templates import render
from toolkit.app import start
from toolkit.app.actions import Actions, upload_field
from toolkit.app.board import Board
from toolkit.app.browse import ERRORS, ORDERS, Split, Wanted
from toolkit.app.decoder import MAX_MB
from toolkit.app.downloads import TABLES
from toolkit.app.guard import PER_CLIENT
from toolkit.app.service import MAX_FILES, PredictionService

log = logging.getLogger(__name__)

#: Seconds between two deletions of old uploads, and minimum age of a deleted file. So files are kept at most an hour.
DELETION_INTERVAL, MIN_AGE = 600, 3000
#: Maximum numbers of running events and of waiting events of all visitors. Further events are refused.
MAX_RUNNING, MAX_WAITING = 8, 64
#: Name of the only event for other programs.
API_NAME = "predict"
#: With more labels, corrections are chosen in a list with a search instead of check boxes.
MAX_BOXES = 100
#: Parameters of HTML parts, and of events: only /predict can be called by other programs.
PLAIN: dict[str, Any] = {"apply_default_css": False, "padding": False}
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
QUIET: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}
#: Scrolls to the displayed poster, which can be far below a long table.
TO_DETAILS = "() => document.querySelector('#shown')?.scrollIntoView({block: 'start'})"

#: Messages for values that a component of the page, or /predict, cannot use.
UNFIT = "A value is missing, or does not fit this page. Choose another value, or load the page again."
UNFIT_FILES = "The data must be a list of files that this server has received."
#: Maximum length of a message of gradio about a value. Some of these messages contain a list of all labels.
MAX_MESSAGE = 200


class _Page(gr.Blocks):
    """A page whose visitors read why an action failed. gradio shows only the word "Error" by default."""

    async def preprocess_data(self, block_fn: Any, *given: Any, **more: Any) -> Any:
        """Check the values from a browser or program. Refuse values that do not fit the components of the page."""
        try:
            return await super().preprocess_data(block_fn, *given, **more)
        except Exception as error:  # a component can raise any exception for a wrong value, also TypeError
            log.warning("values of a visitor were refused: %s: %s", type(error).__name__, one_line(error)[:300])
            unfit = UNFIT_FILES if block_fn.api_name == API_NAME else UNFIT
            message = error.message[:MAX_MESSAGE] if isinstance(error, gr.Error) else unfit
            raise _shown(message) from None

    async def call_function(self, *given: Any, **more: Any) -> Any:
        """Run an action."""
        try:
            return await super().call_function(*given, **more)
        except UserError as error:
            raise _shown(str(error)) from None


def _shown(message: str) -> gr.Error:
    """Return the exception that makes gradio show a message, without a traceback on the terminal."""
    return gr.Error(render("toolkit.app/message.html", said=message), print_exception=False)


def build_page(service: PredictionService, address: str = "", split: Split | None = None) -> Any:
    """Build the gradio page, ready for ``launch``. With ``split``, the page also has a gallery of its posters."""
    actions, words = Actions(service, split), service.words
    with _Page(title=words.title, analytics_enabled=False, delete_cache=(DELETION_INTERVAL, MIN_AGE)) as page:
        board = gr.State(Board(), delete_callback=lambda board: board.close())
        gr.HTML(start.header(service), **PLAIN)
        with gr.Row(elem_id="samples"):
            samples = [gr.Button(f"Sample {k + 1}", elem_id=f"sample-{k + 1}") for k in range(start.SAMPLES)]
        filters, shelf = _gallery(actions, split, board, page) if split else ([], None)
        label = f"{words.things.capitalize()}: up to {MAX_FILES} files of at most {MAX_MB} MB"
        files = upload_field(label=label, elem_id="upload", height=140)
        refused = gr.HTML(elem_id="refused", **PLAIN)
        table = gr.HTML(js_on_load=_script("pick.js"), elem_id="table", **PLAIN)
        with gr.Row(visible=False, elem_id="downloads") as buttons:
            saved = [_download({"parquet": "Parquet"}.get(name, name.upper()), name) for name in TABLES]
            thresholds = _download("new thresholds (labels.json)", "labels")
            empty = gr.Button("Empty the table", size="sm", elem_id="empty")
        details = _details(service)
        _, genres, genre, heat, text, wrong, ticked = details
        with wrong:
            keep = gr.Button("Keep this correction", size="sm", elem_id="keep")
            kept = gr.HTML(render("toolkit.app/counts.html", corrections={}, error=""), elem_id="kept", **PLAIN)
            corrections = _download("corrections.csv", "corrections")
        _api(actions, address)

        below = [table, buttons, *saved, thresholds, board]
        shown = [*below, *details]
        events = [button.click(partial(actions.sample, number), board, [files, refused, *shown], **PRIVATE)
                  for number, button in enumerate(samples)]  # fmt: skip
        events.append(files.upload(actions.take, [files, board], [files, refused, *shown], **PRIVATE))
        empty.click(actions.empty, board, [refused, *shown], **PRIVATE)
        picked = [table.select(actions.pick, board, details, **PRIVATE)]
        views = [shelf] if shelf else []
        if shelf:
            picked.append(shelf.select(actions.browse, [board, *filters], [shelf, *details], **PRIVATE))
        genres.select(actions.set_threshold, [board, *filters], [*below, genres, text, *views], **QUIET)
        keep.click(actions.correct, [board, ticked], [kept, table, corrections, board], **PRIVATE)
        for event in picked:
            event.then(None, js=TO_DETAILS, **QUIET)
        for event in (*events, *picked):
            event.then(actions.read_text, board, text, **QUIET)
        genre.input(actions.look, [board, genre], heat, **PRIVATE)
    page.queue(default_concurrency_limit=MAX_RUNNING, max_size=MAX_WAITING)
    return page


def _details(service: PredictionService) -> list[Any]:
    """Make the components that show one poster, in the order of `Actions._details`."""
    labels, words = list(service.folder.labels.genres), service.words
    with gr.Row(visible=False, elem_id="shown") as answer:
        with gr.Column(scale=5, min_width=280):
            genres = gr.HTML(js_on_load=_script("thresholds.js"), elem_id="answer", **PLAIN)
        with gr.Column(scale=5, min_width=280, elem_id="seen"):
            genre = gr.Dropdown(
                [], label=f"Heat map of {words.noun}", interactive=True, visible=not service.no_heat, elem_id="genre"
            )
            heat = gr.HTML(**PLAIN)
    with gr.Accordion(f"Wrong? Correct the {words.nouns}", open=False, visible=False, elem_id="wrong") as wrong:
        how: dict[str, Any] = {"label": f"The {words.nouns} that it really has", "elem_id": "ticked"}
        few = len(labels) <= MAX_BOXES
        ticked = gr.CheckboxGroup(labels, **how) if few else gr.Dropdown(labels, multiselect=True, **how)
    text = gr.HTML(**PLAIN)
    return [answer, genres, genre, heat, text, wrong, ticked]


def _gallery(actions: Actions, split: Split, board: Any, page: Any) -> tuple[list[Any], Any]:
    """Make the filters, in the order of the fields of `Wanted`, and the gallery."""
    words, usual = actions.service.words, Wanted()
    each = [(f"any {words.noun}", ""), *((genre, genre) for genre in split.genres)]
    with gr.Row(elem_id="filters"):
        filters: list[Any] = [
            gr.Dropdown(each, value=usual.true, label=f"True {words.noun}", elem_id="true"),
            gr.Dropdown(each, value=usual.named, label=f"Named {words.noun}", elem_id="said"),
            gr.Dropdown(list(ERRORS), value=usual.errors, label="Errors", elem_id="errors"),
            gr.Slider(0, 1, value=usual.low, step=0.01, label="Probability from", elem_id="low"),
            gr.Slider(0, 1, value=usual.high, step=0.01, label="Probability to", elem_id="high"),
            gr.Dropdown(list(ORDERS), value=usual.order, label="Order", elem_id="order"),
        ]
    assert len(filters) == len(fields(Wanted))
    shelf = gr.HTML(js_on_load=_script("pick.js"), elem_id="shelf", **PLAIN)
    for field in filters:
        event = field.release if isinstance(field, gr.Slider) else field.input
        event(actions.first_page, [board, *filters], shelf, **PRIVATE)
    page.load(actions.show_page, [board, *filters], shelf, **PRIVATE)
    return filters, shelf


def _api(actions: Actions, address: str) -> None:
    """Describe the interface for other programs, and make its endpoint /predict."""
    facts = {"max_files": MAX_FILES, "max_mb": MAX_MB, "per_client": PER_CLIENT >> 20, "max_waiting": MAX_WAITING}
    gr.HTML(render("toolkit.app/api.html", address=address, words=actions.service.words, **facts), **PLAIN)
    files, answer = upload_field(visible=False), gr.JSON(visible=False)
    gr.Button(visible=False).click(actions.predict, files, answer, api_name=API_NAME)


def _download(what: str, name: str) -> Any:
    """Make a button without a file. An action sets the file, and makes the button visible."""
    return gr.DownloadButton(f"Download {what}", size="sm", visible=False, elem_id=name)


def _script(name: str) -> str:
    return (package_files("toolkit.app") / "templates" / name).read_text(encoding="utf-8")
