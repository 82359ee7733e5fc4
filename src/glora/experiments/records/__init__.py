"""Records: what one run leaves behind, and writing it so that nothing is lost."""
