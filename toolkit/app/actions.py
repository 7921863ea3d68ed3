"""Actions of the page of `posters app`. Each takes the state of the visitor, and returns new values of components."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from shards.errors import UserError, printable_line
from shards.visuals.templates import render
from toolkit.app import html, start
from toolkit.app.board import Board
from toolkit.app.browse import Split, Wanted
from toolkit.app.decoder import Refused
from toolkit.app.downloads import corrections_file, labels_file, prediction_files
from toolkit.app.service import Poster, PredictionService, first_genre

#: Maximum length of the name of an upload.
MAX_NAME = 255


class Actions:
    """Actions for uploads, choices, thresholds, corrections and the gallery."""

    def __init__(self, service: PredictionService, split: Split | None = None) -> None:
        self.service, self.split = service, split

    # --- uploads and choices --------------------------------------------------------------------------------------

    def take(self, files: list[tuple[Path, str]] | None, board: Board) -> list[Any]:
        """Read uploaded files, add them to the table, and display the first new poster."""
        files = files or []
        found = self.service.read([path for path, _ in files], [name for _, name in files])
        refused = board.add(found)
        return [None, self._refusals(refused), *self._table(board), *self._details(board)]

    def sample(self, number: int, board: Board) -> list[Any]:
        """Draw the sample poster of a button, and display it like an upload."""
        path = start.sample_file(number)
        return self.take([(path, path.name)], board)

    def empty(self, board: Board) -> list[Any]:
        """Remove all uploads."""
        board.empty()
        return [self._refusals([]), *self._table(board), *self._details(board)]

    def pick(self, board: Board, event: gr.EventData) -> list[Any]:
        """Display an upload that the visitor chose in the table."""
        row, _ = _sent(event)
        if type(row) is not int or not 0 <= row < len(board.posters):
            raise UserError("option-value", f"the table has no row with the number {str(row)[:20]}")
        board.chosen = board.posters[row]
        return self._details(board)

    def look(self, board: Board, genre: str) -> str:
        """Return the heat map of a genre."""
        poster = board.chosen
        if poster is None or genre not in self.service.folder.labels.genres:
            return ""
        return html.heat_card(poster, genre, self.service.heat(poster, genre), self.service)

    def read_text(self, board: Board) -> Any:
        """Detect text in the displayed poster, and show the prediction without the text."""
        poster = board.chosen
        if poster is None or self.service.no_text:
            return gr.skip()
        try:
            self.service.paint(poster)
        except UserError as error:
            return render("toolkit.app/text.html", said=str(error), words=self.service.words)
        if poster is not board.chosen:  # the visitor chose another poster meanwhile, and another call shows it
            return gr.skip()
        return self._text(poster, board)

    # --- thresholds, corrections and downloads --------------------------------------------------------------------

    def set_threshold(self, board: Board, event: gr.EventData, *filters: Any) -> list[Any]:
        """Change thresholds, and update everything that depends on them without a new inference.

        The browser has already updated the table of labels, unless it does not show all of them.
        """
        folder, poster = self.service.folder, board.chosen
        board.set_threshold(*_sent(event), folder)
        hidden = len(folder.labels) > html.MAX_GENRES and poster is not None
        return [
            *self._table(board),
            html.genres_card(poster, board, self.service) if hidden and poster else gr.skip(),
            self._text(poster, board) if poster is not None and poster.painted else gr.skip(),
            *([self.show_page(board, *filters)] if self.split else []),
        ]

    def correct(self, board: Board, genres: list[str]) -> list[Any]:
        """Keep the genres that the displayed poster really has."""
        error = ""
        try:
            board.correct(genres or [], self.service.folder)
        except UserError as refusal:
            error = str(refusal)
        kept = render("toolkit.app/counts.html", corrections=board.corrections, error=error)
        return [kept, html.uploads_table(board, self.service), self._button(corrections_file(board)), board]

    def predict(self, files: list[tuple[Path, str]] | None) -> list[dict[str, Any]]:
        """Return the predictions of files for another program: one object per file, in order."""
        files, folder = files or [], self.service.folder
        answers: list[dict[str, Any]] = []
        for item in self.service.read([path for path, _ in files], [name for _, name in files]):
            if isinstance(item, Refused):
                answers.append({"image": item.name, "genres": [], "probabilities": None, "error": item.message})
                continue
            named = item.probabilities >= folder.thresholds
            genres = [genre for genre, reached in zip(folder.labels.genres, named, strict=True) if reached]
            probabilities = dict(zip(folder.labels.genres, item.probabilities.round(6).tolist(), strict=True))
            answers.append({"image": item.name, "genres": genres, "probabilities": probabilities, "error": None})
        return answers

    # --- gallery --------------------------------------------------------------------------------------------------

    def show_page(self, board: Board, *filters: Any) -> str:
        """Return the page of the gallery with the visitor's filters, in the order of the fields of `Wanted`."""
        assert self.split is not None
        return html.gallery(self.split, Wanted(*filters), board, self.service)

    def first_page(self, board: Board, *filters: Any) -> str:
        """Return the first page for new filters."""
        board.page = 0
        return self.show_page(board, *filters)

    def browse(self, board: Board, event: gr.EventData, *filters: Any) -> list[Any]:
        """Show another page of the gallery, or display a poster of the shard set."""
        assert self.split is not None
        number, what = _sent(event)
        if what == "page":
            if type(number) is not int or number < 0:
                raise UserError("option-value", f"the gallery has no page with the number {str(number)[:20]}")
            board.page = number
            return [self.show_page(board, *filters), *[gr.skip()] * DETAILS]
        board.chosen = self.split.open(self.split.require_row(number), self.service)
        return [gr.skip(), *self._details(board)]

    # --- parts of the page ----------------------------------------------------------------------------------------

    def _details(self, board: Board) -> list[Any]:
        """Return the values of the DETAILS components that show one poster."""
        poster = board.chosen
        if poster is None:
            return [gr.Row(visible=False), "", gr.Dropdown([], value=None), "", "", gr.Accordion(visible=False), []]
        lines = self.service.lines(poster.probabilities, board.thresholds(self.service.folder))
        first = first_genre(lines)
        named = board.named(poster, self.service.folder)
        return [
            gr.Row(visible=True),
            html.genres_card(poster, board, self.service),
            gr.Dropdown([line.genre for line in lines], value=first),
            self.look(board, first),
            self._text(poster, board),
            gr.Accordion(visible=True),
            list(board.corrections.get(poster.id, named if poster.true is None else poster.true)),
        ]

    def _text(self, poster: Poster, board: Board) -> str:
        """Return the card with the result without text, or why there is none (yet)."""
        if poster.painted is None:
            said = self.service.no_text or "Detecting text ..."
            return render("toolkit.app/text.html", said=said, words=self.service.words)
        thresholds = board.thresholds(self.service.folder)
        before, after = (self.service.lines(each.probabilities, thresholds) for each in (poster, poster.painted))
        return html.text_card(poster, poster.painted, before, after, self.service.words)

    def _table(self, board: Board) -> list[Any]:
        """Return the table of uploads, and the files with its predictions and thresholds, in the same event.

        The state is also returned: gradio deletes only states that an action returned.
        """
        files = [*prediction_files(board, self.service), labels_file(board, self.service)]
        buttons = gr.Row(visible=bool(board.posters or board.refused or board.changed))
        return [html.uploads_table(board, self.service), buttons, *map(self._button, files), board]

    def _refusals(self, refused: Any) -> str:
        return render("toolkit.app/refusals.html", refused=refused)

    def _button(self, path: Path | None) -> Any:
        return gr.DownloadButton(value=None if path is None else str(path), visible=path is not None)


#: Number of components that `Actions._details` sets.
DETAILS = 7


def _sent(event: gr.EventData) -> tuple[Any, Any]:
    """Return the index and the value that a browser sent with an event. Both can be anything, or None."""
    data = event._data
    return (data.get("index"), data.get("value")) if isinstance(data, dict) else (None, None)


def upload_field(**parameters: Any) -> Any:
    """Return a field for files whose value is a list of (path, name). Names in paths of gradio lack some characters.

    A subclass of gr.File would be simpler, but gradio writes a file beside the module of a subclass. An action must not
    return gr.File(...) for the field: gradio would replace the field by another one.
    """
    field = gr.File(file_count="multiple", **parameters)
    checked = field.preprocess

    def preprocess(payload: Any) -> Any:
        paths: Any = checked(payload)
        if paths is None:
            return None
        files = getattr(payload, "root", [payload])
        names = [Path(file.orig_name or path).name for file, path in zip(files, paths, strict=True)]
        return [(Path(path), printable_line(name)[:MAX_NAME]) for path, name in zip(paths, names, strict=True)]

    field.preprocess = preprocess  # type: ignore[method-assign]
    return field
