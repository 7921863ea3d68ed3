"""The page of `posters app`: components of gradio, and the actions for uploads and choices."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from shards.errors import UserError
from shards.visuals.templates import render
from toolkit.app import html, start
from toolkit.app.decoder import MAX_MB, Refused
from toolkit.app.service import MAX_FILES, Poster, PredictionService, first_genre

#: Seconds between two deletions of old uploads, and minimum age of a deleted file. So files are kept at most an hour.
DELETION_INTERVAL, MIN_AGE = 600, 3000
#: Maximum numbers of running events and of waiting events of all visitors. Further events are refused.
MAX_RUNNING, MAX_WAITING = 8, 64
#: Maximum width and height of the thumbnails in pixels.
THUMBNAIL = (240, 240)


class Board:
    """The posters of one visitor, and the displayed poster."""

    def __init__(self) -> None:
        self.posters: list[Poster] = []
        self.chosen: Poster | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Board:
        return Board()  # gradio copies the initial state for every visitor


class Actions:
    """Actions for uploads and choices. Each action returns the new values of the page's components."""

    def __init__(self, service: PredictionService) -> None:
        self.service = service

    def take(self, paths: list[str] | None, board: Board) -> list[Any]:
        """Read uploaded files, and show the first poster."""
        found = self.service.read([Path(path) for path in paths or []])
        board.posters = [item for item in found if isinstance(item, Poster)]
        thumbnails = [(_thumbnail(item), item.name) for item in board.posters]
        return [
            render("toolkit.app/refusals.html", refused=[item for item in found if isinstance(item, Refused)]),
            gr.Gallery(thumbnails, visible=len(thumbnails) > 1, selected_index=0 if thumbnails else None),
            *self._show(board, 0),
        ]

    def sample(self, number: int, board: Board) -> list[Any]:
        """Draw the sample poster of a button, and show it like an upload."""
        return self.take([str(start.sample_file(number))], board)

    def pick(self, board: Board, event: gr.SelectData) -> list[Any]:
        """Show the poster that the visitor chose."""
        return self._show(board, int(event.index))

    def _show(self, board: Board, index: int) -> list[Any]:
        if index >= len(board.posters):
            board.chosen = None
            return [gr.Row(visible=False), "", gr.Dropdown([], value=None), "", ""]
        poster = board.chosen = board.posters[index]
        lines = self.service.lines(poster.probabilities)
        first = first_genre(lines)
        return [
            gr.Row(visible=True),
            html.genres_card(poster, lines, self.service),
            gr.Dropdown([line.genre for line in lines], value=first),
            self.look(board, first),
            render("toolkit.app/text.html", said=self.service.no_text or "Detecting text ..."),
        ]

    def look(self, board: Board, genre: str) -> str:
        """Return the heat map of a genre."""
        poster = board.chosen
        if poster is None:
            return ""
        return html.heat_card(poster, genre, self.service.heat(poster, genre), self.service)

    def read_text(self, board: Board) -> Any:
        """Detect text in the displayed poster, and show the prediction without the text."""
        poster = board.chosen
        if poster is None or self.service.no_text:
            return gr.skip()
        try:
            painted = self.service.paint(poster)
        except UserError as error:
            return render("toolkit.app/text.html", said=str(error))
        if poster is not board.chosen:  # the visitor chose another poster meanwhile, and another call shows it
            return gr.skip()
        with_text, without = map(self.service.lines, (poster.probabilities, painted.probabilities))
        return html.text_card(poster, painted, with_text, without)


def build_page(service: PredictionService) -> Any:
    """Build the gradio page, ready for ``launch``."""
    folder = service.folder
    plain: dict[str, Any] = {"apply_default_css": False, "padding": False}
    with gr.Blocks(
        title="Which genres does a poster show?", analytics_enabled=False, delete_cache=(DELETION_INTERVAL, MIN_AGE)
    ) as page:
        board = gr.State(Board())
        gr.HTML(start.header(folder), **plain)
        with gr.Row(elem_id="samples"):
            samples = [gr.Button(f"Sample {k + 1}", elem_id=f"sample-{k + 1}") for k in range(start.SAMPLES)]
        files = gr.File(
            file_count="multiple",
            label=f"Posters: up to {MAX_FILES} files of at most {MAX_MB} MB",
            elem_id="upload",
            height=140,
        )
        refused = gr.HTML(elem_id="refused", **plain)
        gallery = gr.Gallery(
            label="Choose one", show_label=False, columns=8, fit_columns=False, allow_preview=False,
            object_fit="contain", interactive=False, visible=False, buttons=[], elem_id="gallery",
        )  # fmt: skip
        with gr.Row(visible=False) as answer:
            with gr.Column(scale=5, min_width=280):
                genres = gr.HTML(**plain)
            with gr.Column(scale=5, min_width=280, elem_id="seen"):
                genre = gr.Dropdown(
                    [], label="Heat map of genre", interactive=True, visible=not service.no_heat,
                    elem_id="genre",
                )  # fmt: skip
                heat = gr.HTML(**plain)
        text = gr.HTML(**plain)

        actions, parts = Actions(service), [answer, genres, genre, heat, text]
        private: dict[str, Any] = {"api_visibility": "private"}
        quiet: dict[str, Any] = {**private, "show_progress": "hidden"}
        answers = [refused, gallery, *parts]
        clicked = [
            button.click(partial(actions.sample, number), board, answers, **private)
            for number, button in enumerate(samples)
        ]
        taken = files.change(actions.take, [files, board], answers, **private)
        picked = gallery.select(actions.pick, board, parts, **private)
        for shown in (taken, picked, *clicked):
            shown.then(actions.read_text, board, text, **quiet)
        genre.input(actions.look, [board, genre], heat, **private)
    page.queue(default_concurrency_limit=MAX_RUNNING, max_size=MAX_WAITING)
    return page


def _thumbnail(poster: Poster) -> Image.Image:
    image = poster.image
    image.thumbnail(THUMBNAIL)
    return image
