"""Coverage-guided fuzzing: the targets, their corpora, and the replay of these as a test."""
