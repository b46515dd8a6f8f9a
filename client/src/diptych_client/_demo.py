"""A web page to try the model: drop an image, type a text, see which of them decided.

Needs Gradio (the extra `demo`).
"""

from __future__ import annotations

from typing import Any

import gradio as gr  # type: ignore[import-not-found,unused-ignore]

from diptych_client._answer import Answer
from diptych_client._client import Client
from diptych_client._errors import DiptychError

TITLE = "Diptych"
INTRODUCTION = "# Diptych\nDrop an image, type a text, or both. See the label, and which of the two decided."
WAITING = "Nothing asked yet."
DECIDED_BY = {
    "image": "the image decided",
    "text": "the text decided",
    "either": "image and text agree",
    "together": "only together they give this label",
}
NUM_BARS = 5
# Gradio's default theme downloads fonts.
FONTS = ("system-ui", "sans-serif")

Bars = dict[str, float] | None


def serve_demo(client: Client, *, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the page until interrupted. Raises OSError if the port is taken."""
    theme = gr.themes.Soft(font=FONTS, font_mono=("ui-monospace", "monospace"))
    build_page(client).launch(
        server_name=host, server_port=port, share=False, quiet=True, theme=theme, footer_links=[]
    )


def build_page(client: Client) -> Any:
    """The page as gradio.Blocks, to launch or to mount in your own app."""

    def ask(upload: dict[str, Any] | None, text: str) -> tuple[Bars, Bars, Bars, str]:
        if upload is None and not text.strip():
            return None, None, None, WAITING
        try:
            answer = client.classify(upload["path"] if upload else None, text, explain=True)
        except DiptychError as error:
            return None, None, None, f"**{type(error).__name__}**: {error}"
        assert answer.explanation is not None  # it was asked for
        alone = answer.explanation.image_only, answer.explanation.text_only
        return answer.probabilities, _bars(alone[0]), _bars(alone[1]), describe(answer)

    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                image = gr.Image(label="Image", height=320)
                text = gr.Textbox(label="Text", placeholder="A modern smartphone", elem_id="text")
                button = gr.Button("Classify", variant="primary", elem_id="classify")
            with gr.Column():
                both = gr.Label(label="Image and text", num_top_classes=NUM_BARS, elem_id="both")
                status = gr.Markdown(WAITING, elem_id="status")
                with gr.Row():
                    alone = [
                        gr.Label(
                            label=f"{name} alone", num_top_classes=NUM_BARS, elem_id=f"{name.lower()}-alone"
                        )
                        for name in ("Image", "Text")
                    ]
        gr.on(
            [image.change, text.submit, button.click],
            ask,
            inputs=[image, text],
            outputs=[both, *alone, status],
            # The file as it was uploaded, not one that Gradio has encoded again; and where it is damaged, the
            # server's words. Gradio has checked that the path is that of an upload.
            preprocess=False,
            api_name=False,
        )
    return page


def describe(answer: Answer) -> str:
    """Which modality decided, if there are two; the time; the model version."""
    parts = [f"{answer.timings.total_ms:.0f} ms", f"model version {answer.model_version}"]
    explanation = answer.explanation
    if explanation is not None and explanation.image_only and explanation.text_only:
        parts.insert(0, DECIDED_BY[explanation.decided_by])
    return " · ".join(parts)


def _bars(answer: Answer | None) -> Bars:
    return None if answer is None else answer.probabilities
