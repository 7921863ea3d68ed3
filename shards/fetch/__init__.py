"""``posters fetch``: download the links of a CSV to a folder of posters. Each failed link is reported with a reason."""
