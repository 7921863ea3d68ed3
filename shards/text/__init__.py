"""Text on posters: find it, cover it with a mask, paint it out, prove that it is gone.

    pixels ─ detector ─→ regions ─ masks ─→ mask, skipped ─ fill ─→ pixels, and again until nothing is found

``pipeline.py`` has that loop for one poster; ``clean/verify.py`` looks again, more strictly than the loop did.
"""
