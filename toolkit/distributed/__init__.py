"""Processes of a launch: start-up, comparison, gathering, voting, and shared work and weights."""
