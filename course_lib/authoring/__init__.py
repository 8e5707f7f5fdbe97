"""From solutions to exercises, student edition and book."""
