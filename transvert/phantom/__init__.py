"""A CT painted from a label mask: column, torso, skeleton and bone material."""
