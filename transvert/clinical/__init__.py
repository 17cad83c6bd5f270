"""From two radiographs and their landmarks to a standing spine."""
