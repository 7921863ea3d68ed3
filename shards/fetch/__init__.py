"""``posters fetch``: download the links of a CSV into a folder of checked posters. Each failed link gets a reason."""
