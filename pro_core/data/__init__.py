"""Preference data: objectives, conversations, file formats, public sets, and which rows train and which are graded."""
