"""How the pages look."""

import gradio

THEME = gradio.themes.Default(
    primary_hue="sky", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
"""With the fonts of the visitor's system: nothing is fetched from elsewhere."""

CSS = """
.pixels img { image-rendering: pixelated; }
.pixels .grid-wrap, .images .grid-wrap {
  height: auto !important; min-height: 8rem !important; max-height: none !important;
}
.status { min-height: 2rem; }
.status .html-container { padding: 0; }
.status p { margin: 0.25rem 0; }
.status progress {
  appearance: none; width: min(16rem, 40vw); height: 0.5rem; border: 0; border-radius: 4px; vertical-align: middle;
  overflow: hidden; background: var(--border-color-primary);
}
.status progress::-webkit-progress-bar { background: var(--border-color-primary); }
.status progress::-webkit-progress-value { background: var(--color-accent); }
.status progress::-moz-progress-bar { background: var(--color-accent); }
.seed { align-items: end; }
@media (max-width: 600px) {
  .pixels:not(.one) .grid-container { grid-template-columns: repeat(2, 1fr) !important; }
}
#card img { max-width: 100%; }
"""
HEAD = '<meta name="viewport" content="width=device-width, initial-scale=1">'
