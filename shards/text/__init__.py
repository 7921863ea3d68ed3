"""Remove text from posters: find the text, mask the text, paint over the mask, and search for text again.

    pixels ─ detector ─→ regions ─ masks ─→ mask, skipped ─ fill ─→ pixels, repeated until no text is found

``pipeline.py`` has this loop for one poster. ``clean/verify.py`` checks cleaned posters with lower thresholds.
"""
