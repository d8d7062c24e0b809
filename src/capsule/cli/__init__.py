"""Words in, words and an exit status out: the only code that prints."""
