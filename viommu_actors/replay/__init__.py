"""Transcripts of a remapping unit: what was done to it, and what happened. Read, run on the project's unit, judged."""
