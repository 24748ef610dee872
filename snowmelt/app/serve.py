"""From the name of a model to its page, served."""

import PIL.Image

from snowmelt.app.card import read_card
from snowmelt.app.model import Model
from snowmelt.app.page import LARGEST_IMAGE, launch_options, make_page


def serve(name: str, revision: str | None = None) -> None:
    """Serve the page of a model until the process is interrupted; GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say where.

    Raises:
        UserError: if there is no such model.
    """
    PIL.Image.MAX_IMAGE_PIXELS = LARGEST_IMAGE // 2  # Pillow warns from there, and refuses twice as many
    make_page(Model(name, revision), read_card(name, revision)).launch(**launch_options())
