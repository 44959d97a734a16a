"""First stage: find the few hundred ads of a large catalogue that a user may want."""
