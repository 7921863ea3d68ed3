"""``posters clean``: raw posters in, posters without text out, and a report that proves it."""
