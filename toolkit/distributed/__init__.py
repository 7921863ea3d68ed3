"""Processes of a launch: how they meet, agree, gather, vote, share work and weights."""
