"""The same models on other engines: what they can read, what they are told, how they start."""
