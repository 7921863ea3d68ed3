"""``posters clean``: write posters without text and a report, from raw posters and a CSV."""
