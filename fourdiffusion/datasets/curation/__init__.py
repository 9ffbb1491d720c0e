"""Curation: scores of clips, the reasons to drop them, uid lists, captions, and the manifest of the result."""
