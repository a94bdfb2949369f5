"""Stand-ins for the outside: a VTEX and a marketplace, real HTTP servers that keep state and misbehave on demand."""
