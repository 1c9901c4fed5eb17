"""Preference data: objectives, conversations, files and formats, public sets, and what trains and what is graded."""
