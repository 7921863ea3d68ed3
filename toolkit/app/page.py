"""The page of `posters app`: gradio's components, and what happens when something is dropped or chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from shards.errors import UserError
from shards.visuals.templates import render
from toolkit.app import html
from toolkit.app.decoder import MAX_MB, Refused
from toolkit.app.service import MAX_FILES, Poster, PredictionService, first_genre

#: Seconds between sweeps of uploaded files, and the age from which they go: within an hour.
SWEEP, KEEP = 600, 3000
#: Events of all visitors that run at a time, and that wait; the rest is refused at once.
AT_WORK, WAITING = 8, 64
#: Pixels of the pictures to choose from.
THUMBNAIL = (240, 240)


class Board:
    """One visitor's posters and which of them is shown."""

    def __init__(self) -> None:
        self.posters: list[Poster] = []
        self.chosen: Poster | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Board:
        return Board()  # gradio copies a state's first value for every visitor


class Actions:
    """What the page does when something is dropped or chosen; each returns what the components become."""

    def __init__(self, answers: PredictionService) -> None:
        self.answers = answers

    def take(self, paths: list[str] | None, board: Board) -> list[Any]:
        """Read dropped files, and show the first poster."""
        found = self.answers.read([Path(path) for path in paths or []])
        board.posters = [item for item in found if isinstance(item, Poster)]
        thumbnails = [(_thumbnail(item), item.name) for item in board.posters]
        return [
            render("toolkit.app/refusals.html", refused=[item for item in found if isinstance(item, Refused)]),
            gr.Gallery(thumbnails, visible=len(thumbnails) > 1, selected_index=0 if thumbnails else None),
            *self._show(board, 0),
        ]

    def pick(self, board: Board, event: gr.SelectData) -> list[Any]:
        """Show another of the posters."""
        return self._show(board, int(event.index))

    def _show(self, board: Board, index: int) -> list[Any]:
        if index >= len(board.posters):
            board.chosen = None
            return [gr.Row(visible=False), "", gr.Dropdown([], value=None), "", ""]
        poster = board.chosen = board.posters[index]
        lines = self.answers.lines(poster.probabilities)
        first = first_genre(lines)
        return [
            gr.Row(visible=True),
            html.genres_card(poster, lines, self.answers),
            gr.Dropdown([line.genre for line in lines], value=first),
            self.look(board, first),
            render("toolkit.app/text.html", said=self.answers.no_text or "Looking for text ..."),
        ]

    def look(self, board: Board, genre: str) -> str:
        """The heat map of a genre."""
        poster = board.chosen
        if poster is None:
            return ""
        return html.heat_card(poster, genre, self.answers.heat(poster, genre), self.answers)

    def read_text(self, board: Board) -> Any:
        """Look for text in the poster that is shown."""
        poster = board.chosen
        if poster is None or self.answers.no_text:
            return gr.skip()
        try:
            painted = self.answers.paint(poster)
        except UserError as error:
            return render("toolkit.app/text.html", said=str(error))
        if poster is not board.chosen:  # another was chosen meanwhile: its own answer follows
            return gr.skip()
        with_text, without = map(self.answers.lines, (poster.probabilities, painted.probabilities))
        return html.text_card(poster, painted, with_text, without)


def build_page(answers: PredictionService) -> Any:
    """The gradio page; ``launch`` it."""
    folder = answers.folder
    plain: dict[str, Any] = {"apply_default_css": False, "padding": False}
    with gr.Blocks(
        title="Which genres does a poster show?", analytics_enabled=False, delete_cache=(SWEEP, KEEP)
    ) as page:
        board = gr.State(Board())
        gr.HTML(render("toolkit.app/header.html", folder=folder, ours=folder.preprocessing), **plain)
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
            with gr.Column(scale=5, min_width=280):
                genre = gr.Dropdown(
                    [], label="Heat map: where the model sees", interactive=True, visible=not answers.no_heat,
                    elem_id="genre",
                )  # fmt: skip
                heat = gr.HTML(**plain)
        text = gr.HTML(**plain)

        actions, parts = Actions(answers), [answer, genres, genre, heat, text]
        private: dict[str, Any] = {"api_visibility": "private"}
        quiet: dict[str, Any] = {**private, "show_progress": "hidden"}
        taken = files.change(actions.take, [files, board], [refused, gallery, *parts], **private)
        picked = gallery.select(actions.pick, board, parts, **private)
        for shown in (taken, picked):
            shown.then(actions.read_text, board, text, **quiet)
        genre.input(actions.look, [board, genre], heat, **private)
    page.queue(default_concurrency_limit=AT_WORK, max_size=WAITING)
    return page


def _thumbnail(poster: Poster) -> Image.Image:
    image = poster.image
    image.thumbnail(THUMBNAIL)
    return image
