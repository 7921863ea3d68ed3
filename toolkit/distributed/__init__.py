"""The processes of a launch: start, comparison, gathering, voting, and shared work and weights."""
