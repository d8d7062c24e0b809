"""What git says about a directory that is shown: where its repository lies, what that knows."""
