"""Remove text from posters: find it, mask it, paint over the mask, and check the result.

    pixels ─ detector ─→ regions ─ masks ─→ mask, skipped ─ fill ─→ pixels, repeated until no text is found

``pipeline.py`` has this loop for one poster. ``clean/verify.py`` checks the result with lower thresholds.
"""
