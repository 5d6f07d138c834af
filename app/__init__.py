"""The browser interface: `python -m app`. Imported before gradio, so that nothing reports home."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Statistics of its own that nobody sees cost it as much as a small event does.
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000"
# Gradio lets these speak where an argument says "none": they would open files and a code reloader to the page.
for _name in ("GRADIO_ALLOWED_PATHS", "GRADIO_WATCH_DIRS", "GRADIO_HISTORY_BUCKET"):
    os.environ.pop(_name, None)
