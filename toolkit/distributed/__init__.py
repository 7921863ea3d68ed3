"""Start and compare the processes of a launch, gather their results, take votes, and share work and weights."""
