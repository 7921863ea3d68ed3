"""The ``posters`` command: its tree, the options of each command, and how errors end."""
