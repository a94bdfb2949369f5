"""The kinds of work the hub does, one file each: read one side, decide, make the other side agree."""
