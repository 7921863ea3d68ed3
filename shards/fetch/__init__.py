"""``posters fetch``: from a CSV of links to a folder of whole posters, and a reason for every link that gave none."""
