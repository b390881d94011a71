"""Options searched by trials: a space, a study that several processes may share, and what it found."""
